"""No page links to what is not there, and none is left out of the index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "*/README.md", "benchmarks/*.md") for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def targets(page: Path) -> list[Path]:
    """The files of this repository that a page links to."""
    links = LINK.findall(re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL))
    return [(page.parent / link.partition("#")[0]).resolve() for link in links if not re.match(r"\w+:|#", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [str(target) for target in targets(page) if not target.exists()] == []


def test_the_index_knows_every_page_of_docs() -> None:
    index = ROOT / "docs" / "README.md"
    assert set((ROOT / "docs").rglob("*.md")) - {index} <= set(targets(index))
