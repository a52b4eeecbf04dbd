"""Checkpoints, adapters and drafters in a bucket, where another machine finds them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import torch
from align_pairs import DOCUMENTS, stage
from distilled_models import stage as distilling
from moto.server import ThreadedMotoServer
from safetensors.torch import load_file

from pipeline.models import ModelPool, resolve
from pipeline.models.adapters import WEIGHTS, at_hand, read_manifest
from pipeline.models.distilled import install, read_figures
from pipeline.stages import Run, Stopped


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    moto = ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    made = boto3.resource("s3").Bucket("align")
    made.create(CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    yield "s3://align/jobs/one/align"
    made.objects.delete()
    made.delete()
    moto.stop()


def test_a_training_goes_on_from_a_bucket(bucket: str, tiny_model: Path, tmp_path: Path) -> None:
    pool = ModelPool("cpu")
    calls = itertools.count()
    with pytest.raises(Stopped):
        stage(tiny_model).run(DOCUMENTS, Run(pool, folder=bucket, stopping=lambda: next(calls) > 12))
    stage(tiny_model).run(DOCUMENTS, Run(pool, folder=bucket))
    stage(tiny_model).run(DOCUMENTS, Run(pool, folder=str(tmp_path)))
    with at_hand(f"{bucket}/adapter") as fetched, at_hand(str(tmp_path / "adapter")) as here:
        assert read_manifest(fetched) == read_manifest(here)
        mine, theirs = load_file(fetched / WEIGHTS), load_file(here / WEIGHTS)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    keys = [item.key for item in boto3.resource("s3").Bucket("align").objects.all()]
    assert len([key for key in keys if "/checkpoints/step-" in key]) == 1


def test_a_drafter_is_installed_from_a_bucket(bucket: str, tiny_model: Path, tmp_path: Path) -> None:
    pool = ModelPool("cpu")
    for folder in (bucket, str(tmp_path)):
        distilling(tiny_model, epochs=1, measured=2).run(DOCUMENTS, Run(pool, folder=folder))
    with at_hand(f"{bucket}/model") as fetched:
        made = install(fetched, "swift", tmp_path, "recipe")
    assert read_figures(made) == read_figures(tmp_path / "model")
    assert resolve(str(made)).digest == resolve(str(tmp_path / "model")).digest
