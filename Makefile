# contextmill: `make` lists what there is. Everything lives in .venv; `make clean` takes it away again.
#
#   PYTHON=python3.12   interpreter for .venv (default: the newest one from 3.11 to 3.13)
#   TORCH_INDEX=URL     package index for torch alone. On a machine without a GPU,
#                       https://download.pytorch.org/whl/cpu saves gigabytes of CUDA libraries.
#   ENCODER=NAME        which trained encoder of memory slots `make demo-memory` shows (default: the one that comes along)
#   SEEDS=20            how many random seeds `make chaos` runs
#   JOBS=3              processes that share the tests of `make test`, but for those that start processes themselves

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

TORCH_INDEX ?=
PYTHON ?=
ENCODER ?= smollm2-135m-icae
SEEDS ?= 20
JOBS ?= 3
PROCESSES := tests/workers tests/chaos
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE  # tests start hundreds of processes: each would compile all there is
export TORCH_INDEX PYTHON PIP_DISABLE_PIP_VERSION_CHECK := 1 PIP_ROOT_USER_ACTION := ignore

.PHONY: help demo demo-again demo-memory test lint chaos bench-cpu clean

help: ## this list
	@echo "contextmill: long prompts in, short prompts and answers out, with what they cost"
	echo
	grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
	echo
	echo "Start with \`make demo\`. Variables: PYTHON, TORCH_INDEX, ENCODER, SEEDS, JOBS (see the head of the Makefile)."

demo: .venv/.runtime ## compress and answer 24 real prompts: installs everything, starts and stops what it needs
	@$(BIN)/contextmill models pull smollm2-135m-instruct
	$(BIN)/contextmill run examples/gsm8k.toml --output "runs/demo-$$(date +%Y%m%d-%H%M%S)"
	echo
	echo "Next: \`make demo-again\` runs the same job once more, then one more document: nothing is computed twice."

demo-again: .venv/.runtime ## after a demo: the same job only reports; with one more document, only that one is worked on
	@run=$$(ls -d runs/demo-* 2>/dev/null | sort | tail -n 1)
	[ -n "$$run" ] || { echo "error: no run to build on: first run \`make demo\`" >&2; exit 1; }
	echo ">> the same job again, in $$run"
	$(BIN)/contextmill run examples/gsm8k.toml --output "$$run"
	echo ">> the same 24 documents and one more"
	$(BIN)/contextmill run examples/gsm8k.toml --output "$$run" --input examples/gsm8k.jsonl --input examples/gsm8k-one-more.jsonl

demo-memory: .venv/.runtime ## old books in memory slots: repeated from these alone, and answered from them, the whole text and nothing
	@$(BIN)/contextmill models pull smollm2-135m-instruct
	echo ">> four passages into slots (int8), and what the model repeats from these alone"
	$(BIN)/contextmill icae reconstruct $(ENCODER) examples/memory.jsonl --precision int8
	echo
	$(BIN)/python -c "from pipeline.models import encoders; from schemas.settings import Settings
	exit(encoders.read_manifest(encoders.find('$(ENCODER)', Settings().cache)).answers is None)" || {
		echo "$(ENCODER) repeats, and was not taught to answer: docs/memory.md says how that is done, and what it is worth."
		exit 0
	}
	run="runs/memory-$$(date +%Y%m%d-%H%M%S)"
	echo ">> three questions about each, answered from slots"
	$(BIN)/contextmill run examples/memory.toml --output "$$run" --set stages.0.encoder=$(ENCODER)
	echo ">> the same questions, answered from the whole text, and from nothing"
	read="$(BIN)/contextmill run examples/memory.toml --output $$run --set stages.0="
	$$read --set name=memory-text > /dev/null
	$$read --set name=memory-nothing --set input.columns.contexts= > /dev/null
	echo
	$(BIN)/python examples/show_memory.py "$$run"

test: .venv/.dev ## lint, types, import contracts and all tests; installs redis-server, PostgreSQL and Chromium by apt
	@.ci/install-servers
	# Tests of processes wait for them half of the time: they begin now, and all that runs beside them gives way (nice).
	export OMP_NUM_THREADS=1
	log=$$(mktemp)
	$(BIN)/python -m pytest $(PROCESSES) -o cache_dir=.pytest_cache/processes > "$$log" 2>&1 & beside=$$!
	trap '{ kill $$beside && wait $$beside; } 2> /dev/null || true; rm -f "$$log"' EXIT
	nice $(MAKE) --no-print-directory lint
	echo ">> tests"
	nice $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(addprefix --ignore=,$(PROCESSES)) && status=0 || status=$$?
	wait $$beside || status=$$?
	echo ">> tests of processes: $(PROCESSES)"
	cat "$$log"
	exit $$status

lint: .venv/.dev ## ruff, mypy --strict, import contracts
	@echo ">> ruff"
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	echo ">> mypy"
	$(BIN)/mypy
	find tests -mindepth 2 -name conftest.py | while read -r file; do MYPYPATH=tests:tests/fakes $(BIN)/mypy "$$file"; done
	echo ">> import contracts"
	$(BIN)/lint-imports

chaos: .venv/.dev ## kill workers and broker at random moments, once per seed: make chaos SEEDS=20
	@.ci/install-servers
	$(BIN)/python -m pytest -v -m chaos --seeds $(SEEDS)

bench-cpu: .venv/.dev ## the benchmarks that need no GPU
	@.ci/install-servers
	for script in benchmarks/cpu_*.py; do
	  echo ">> $$script"
	  $(BIN)/python "$$script"
	done

clean: ## remove .venv, caches and build output; runs/ and downloaded models stay
	@rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.made: .ci/make-venv
	@.ci/make-venv
	touch $@

.venv/.runtime: .venv/.made pyproject.toml constraints.txt
	@echo ">> installing contextmill and its pinned dependencies"
	$(PIP) -e '.[all]'
	touch $@

.venv/.dev: .venv/.made pyproject.toml constraints.txt
	@echo ">> installing contextmill, its pinned dependencies and the tools of the tests"
	$(PIP) -e '.[all]' --group dev
	touch $@ .venv/.runtime
