"""The deployment files agree with the code. No container engine is needed: infra/README.md says what was not run."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import yaml

from schemas.job import JobSpec
from schemas.settings import Settings
from schemas.tables import Base

ROOT = Path(__file__).parent.parent
INFRA = ROOT / "infra"
MANIFESTS = sorted((INFRA / "kubernetes").glob("*.yaml"))
SECRET = re.compile(r"(password|secret|token|api[_-]?key)\s*[:=]\s*['\"]?[A-Za-z0-9+/]{12,}", re.IGNORECASE)


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in documents(path) if document["kind"] == kind]


def dicts(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside a YAML value, itself included."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from dicts(inner)


def pods() -> list[dict[str, Any]]:
    """The specs of all pods that the manifests make."""
    return [spec for path in MANIFESTS for spec in dicts(documents(path)) if "containers" in spec]


def test_every_environment_variable_is_a_setting() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in INFRA.rglob("*") if path.is_file())
    named = set(re.findall(r"CONTEXTMILL_([A-Z_]+)", text))
    assert {"DATABASE_URL", "BROKER_URL", "CACHE_DIR"} <= named
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def test_no_file_holds_a_secret() -> None:
    for path in INFRA.rglob("*"):
        if path.is_file():
            assert not SECRET.search(path.read_text(encoding="utf-8")), path
    assert not of_kind("Secret")


def test_pods_are_not_root_and_may_do_nothing_more_than_they_need() -> None:
    assert len(pods()) == 3
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"] == {"drop": ["ALL"]}
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts <= {volume["name"] for volume in pod.get("volumes", [])} | {"data"}


def test_workers_get_the_time_that_a_clean_end_takes() -> None:
    (worker,) = of_kind("Deployment")
    pod = worker["spec"]["template"]["spec"]
    enough = Settings.model_fields["soft_shutdown_seconds"].default + 30
    assert pod["terminationGracePeriodSeconds"] >= enough
    assert {"name": "REMAP_SIGTERM", "value": "SIGQUIT"} in pod["containers"][0]["env"]
    compose = documents(INFRA / "compose.yaml")[0]
    assert int(compose["services"]["worker"]["stop_grace_period"].removesuffix("s")) >= enough
    assert "REMAP_SIGTERM=SIGQUIT" in (INFRA / "Dockerfile").read_text(encoding="utf-8")


def test_redis_forgets_and_evicts_nothing() -> None:
    compose = documents(INFRA / "compose.yaml")[0]["services"]["redis"]["command"]
    (kubernetes,) = [pod["containers"][0]["args"] for pod in pods() if pod["containers"][0]["name"] == "redis"]
    for words in (compose, kubernetes):
        line = " ".join(words)
        assert "--appendonly yes --appendfsync everysec --maxmemory-policy noeviction" in line


def test_the_scaler_scales_the_worker() -> None:
    (scaler,) = of_kind("ScaledObject")
    (worker,) = of_kind("Deployment")
    assert scaler["spec"]["scaleTargetRef"]["name"] == worker["metadata"]["name"]
    assert "replicas" not in worker["spec"]  # else every apply would undo what the scaler did
    (login,) = of_kind("TriggerAuthentication")
    assert scaler["spec"]["triggers"][0]["authenticationRef"]["name"] == login["metadata"]["name"]


@pytest.mark.parametrize(
    ("job_state", "shard_states", "counted"),
    [
        ("running", ("pending", "leased", "leased", "done", "split", "dead"), 3),
        ("running", ("done", "reopened"), 1),  # a publication is made by a worker, too
        ("submitting", ("pending",), 1),
        ("submitting", (), 0),  # its producer may be gone for ever
        ("done", ("done",), 0),
        *((state, ("pending", "leased", "done"), 0) for state in ("cancelled", "stopped")),  # a fleet must not wait
    ],
)
def test_the_scaler_counts_open_shards(
    postgres_url: str, job_state: str, shard_states: tuple[str, ...], counted: int
) -> None:
    query = of_kind("ScaledObject")[0]["spec"]["triggers"][0]["metadata"]["query"]
    dashboard = json.loads((INFRA / "grafana" / "contextmill.json").read_text(encoding="utf-8"))
    assert dashboard["panels"][0]["targets"][0]["rawSql"].replace(" as open", "") == query
    engine = sqlalchemy.create_engine(postgres_url)
    Base.metadata.create_all(engine)
    texts = {"id": "j", "name": "n", "state": job_state, "spec_hash": "", "input_hash": "", "output": ""}
    job = {**texts, "spec": {}, "stage_hashes": [], "workers": 1, "documents": 0, "collapsed": 0, "created_at": 0.0}
    shard: dict[str, Any] = {"job_id": "j", "stage": 0, "start": 0, "stop": 1, "attempt": 0, "attempt_limit": 3}
    shards = [shard | {"id": str(number), "state": state} for number, state in enumerate(shard_states)]
    with engine.begin() as connection:
        connection.execute(sqlalchemy.insert(Base.metadata.tables["jobs"]), [job])
        if shards:
            connection.execute(sqlalchemy.insert(Base.metadata.tables["shards"]), shards)
        assert connection.execute(sqlalchemy.text(query)).scalar_one() == counted
    engine.dispose()


def test_every_query_of_the_dashboard_runs(postgres_url: str) -> None:
    dashboard = json.loads((INFRA / "grafana" / "contextmill.json").read_text(encoding="utf-8"))
    queries = [target["rawSql"] for panel in dashboard["panels"] for target in panel["targets"]]
    engine = sqlalchemy.create_engine(postgres_url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        for query in queries:
            connection.execute(sqlalchemy.text(query)).all()
    engine.dispose()
    assert len(queries) == 9


def test_the_dashboard_shows_what_was_paid_and_the_speed_of_what_was_worked_on(postgres_url: str) -> None:
    dashboard = json.loads((INFRA / "grafana" / "contextmill.json").read_text(encoding="utf-8"))
    queries = {panel["title"]: panel["targets"][0]["rawSql"] for panel in dashboard["panels"]}
    engine = sqlalchemy.create_engine(postgres_url)
    Base.metadata.create_all(engine)
    texts = {"id": "j", "name": "n", "state": "done", "spec_hash": "", "input_hash": "", "output": ""}
    job = {**texts, "spec": {}, "stage_hashes": [], "workers": 1, "documents": 2, "collapsed": 0, "created_at": 0.0}
    call = {"job_id": "j", "stage": 0, "attempt": 1, "sent_at": 0.0, "state": "done", "cost_microusd": 2_000_000}
    usage = {"job_id": "j", "stage": 0, "stage_hash": "", "content_hash": "", "part": "", "row": 0, "tokens_in": 100}
    worked = usage | {"seq": 0, "tokens_out": 1, "seconds": 2.0, "cost_microusd": 2_000_000, "reused_from": None}
    taken_over = usage | {"seq": 1, "tokens_out": 1, "seconds": 0.0, "cost_microusd": 0, "reused_from": "i"}
    refused_but_paid = call | {"id": "b", "seq": 2}
    with engine.begin() as connection:
        tables = Base.metadata.tables
        connection.execute(sqlalchemy.insert(tables["jobs"]), [job])
        connection.execute(sqlalchemy.insert(tables["requests"]), [call | {"id": "a", "seq": 0}, refused_but_paid])
        connection.execute(sqlalchemy.insert(tables["usage"]), [worked, taken_over])
        assert float(connection.execute(sqlalchemy.text(queries["Spent, USD"])).scalar_one()) == 4.0
        row = connection.execute(sqlalchemy.text(queries["Tokens and seconds by stage"])).one()
    assert (row.tokens_in, row.tokens_per_second, row.reused) == (200, 50, 1)
    engine.dispose()


def test_kustomization_names_every_manifest() -> None:
    named = documents(INFRA / "kubernetes" / "kustomization.yaml")[0]["resources"]
    assert sorted([*named, "kustomization.yaml"]) == [path.name for path in MANIFESTS]


def test_the_nightly_job_is_valid() -> None:
    spec = tomllib.loads((INFRA / "kubernetes" / "nightly.toml").read_text(encoding="utf-8"))
    assert JobSpec.model_validate(spec).name == "nightly"


def test_compose_services_refer_to_what_there_is() -> None:
    compose = documents(INFRA / "compose.yaml")[0]
    for service in compose["services"].values():
        assert set(service.get("depends_on", ())) <= set(compose["services"])
        named = {mount.split(":")[0] for mount in service["volumes"]}
        assert {name for name in named if not name.startswith((".", "/"))} <= set(compose["volumes"])
    assert set(documents(INFRA / "compose.gpu.yaml")[0]["services"]) <= set(compose["services"])


def test_the_image_is_made_of_files_that_are_there_and_not_ignored() -> None:
    image = (INFRA / "Dockerfile").read_text(encoding="utf-8")
    copied = [line.split()[1:-1] for line in image.splitlines() if line.startswith("COPY ") and "--from" not in line]
    allowed = (INFRA / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for source in [source for sources in copied for source in sources]:
        assert (ROOT / source).exists()
        assert f"!{source}" in allowed
    assert re.search(r"^USER \d+$", image, re.MULTILINE)


@pytest.mark.parametrize("script", ["run", "make-venv", "install-servers"])
def test_scripts_parse_and_may_be_run(script: str) -> None:
    path = ROOT / ".ci" / script
    assert path.stat().st_mode & stat.S_IXUSR
    bash = shutil.which("bash")
    assert bash
    assert subprocess.run([bash, "-n", path], check=False).returncode == 0
