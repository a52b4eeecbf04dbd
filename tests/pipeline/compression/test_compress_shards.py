"""How much of a corpus a shard of the compress stage holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from compress_models import stage_of
from safetensors.numpy import load_file

from pipeline.compression import stage
from pipeline.models.folder import parameters


def test_a_larger_scorer_makes_smaller_shards(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its number of weights: a night of a 1.5B scorer shall not lose ten times as much as one of a 135M."""
    count = sum(array.size for array in load_file(Path(tiny) / "model.safetensors").values())
    assert parameters(Path(tiny)) == count
    seconds = {}
    for size in (count / 10, count, 100.0 * count):
        monkeypatch.setattr(stage, "_PARAMETERS", size)
        stage._known_size.cache_clear()
        seconds[size] = stage_of(tiny, rate=0.5).work_seconds(1_000)
    stage._known_size.cache_clear()
    ten_times, once, least = seconds.values()
    assert ten_times == pytest.approx(10 * once)
    assert least == pytest.approx(once / 8)
    elsewhere = stage_of(str(tmp_path / "none"), target=tiny, rate=0.5).work_seconds(1_000)
    assert elsewhere == pytest.approx(once), "a model that is not on this machine counts as one of 135M"
