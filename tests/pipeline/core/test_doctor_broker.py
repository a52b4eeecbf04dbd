"""What ``doctor`` says of a broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.doctor import examine
from schemas.settings import Settings


@pytest.mark.parametrize("shared", [False, True])
def test_a_broker_beside_a_folders_own_database_comes_with_a_warning(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Two such databases on one broker would take each other's messages."""
    monkeypatch.setenv("CONTEXTMILL_BROKER_URL", "redis://127.0.0.1:1/0")
    if shared:
        monkeypatch.setenv("CONTEXTMILL_DATABASE_URL", sqlite_url)
    findings = examine(Settings(), str(tmp_path), migrate=False, ping=lambda url: None)
    (broker,) = [finding for finding in findings if finding.check == "broker"]
    assert broker.ok and ("need another" in broker.found) is not shared
