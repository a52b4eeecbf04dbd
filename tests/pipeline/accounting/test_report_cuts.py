"""The report's examples of what was cut: text from outside, of any length, that stays text."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest
from accounting_rows import small_job

from pipeline.accounting.figures import RateFigures, Summary
from pipeline.accounting.report import SHOWN, render_html
from pipeline.accounting.summary import summarise
from pipeline.accounting.wording import visible
from pipeline.cuts import Cut, merged
from pipeline.storage.sql import open_engine
from schemas.tables import Base

OWNED = "</div><script>alert(1)</script><img src=x onerror=alert(2)> & '\" {{ 7 * 7 }} {% raw %}\x00\x1b[31m\x9b "
CUT = Cut("j1", OWNED, "corpus.jsonl:1", "random", 90, 45, 44, False, OWNED * 3, "", merged([0, 9, 40, 60, 100, 130]))


@pytest.fixture
def summary(sqlite_url: str) -> Summary:
    engine = open_engine(sqlite_url)
    Base.metadata.create_all(engine)
    small_job(engine)
    found = summarise(engine, "j1")
    engine.dispose()
    return found


class Section(HTMLParser):
    """What stands in ``<div class="cut">``: its text, that of its ``<del>``, and any other tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.inside = self.removing = False
        self.text, self.removed, self.tags = "", "", set[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.inside |= ("class", "cut") in attrs
        self.removing = tag == "del"

    def handle_endtag(self, tag: str) -> None:
        self.removing = False
        self.inside &= tag != "div"

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""
        self.removed += data if self.inside and self.removing else ""


def test_what_was_cut_is_marked_and_stays_text(summary: Summary) -> None:
    html = render_html(summary, [("Typical", CUT)])
    shown = Section(html)
    assert shown.text == visible(CUT.text)
    assert shown.removed == "".join(visible(CUT.text[begin:end]) for begin, end in CUT.removed)
    assert not shown.tags & {"script", "img"}
    assert "49" not in shown.text
    assert not any(sign in html for sign in "\x00\x1b\x9b")
    assert "and the rows shown" in html


def test_an_added_list_is_shown_beside_what_was_cut(summary: Summary) -> None:
    listed = replace(CUT, compressed="kept\n\nRemoved: <b>seven lean years</b>", listed=(4, 40))
    html = render_html(summary, [("Typical", listed)])
    assert "Added: <q>Removed: &lt;b&gt;seven lean years&lt;/b&gt;</q>" in html
    assert "Added:" not in render_html(summary, [("Typical", CUT)])


def test_a_document_of_megabytes_does_not_make_a_report_of_megabytes(summary: Summary) -> None:
    text = "word " * 2**20
    alternating = tuple((at, at + 5) for at in range(0, len(text), 10))
    html = render_html(summary, [("Typical", replace(CUT, doc_id="x" * 10_000, text=text, kept=alternating))])
    assert len(html) - len(render_html(summary)) < 20 * SHOWN
    assert len(Section(html).text) == SHOWN
    assert f"The first {SHOWN:,} of {len(text):,} characters." in html


def test_without_examples_nothing_is_said_of_them(summary: Summary) -> None:
    html = render_html(summary)
    assert "What was cut" not in html
    assert "from its database alone" in html


def test_rates_have_a_line_each(summary: Summary) -> None:
    rates = tuple(RateFigures(rate, 9, 8, 8_000, 4_000, 3_990, 1.5, summary.savings) for rate in (0.5, 0.33))
    html = render_html(replace(summary, rates=rates))
    assert (
        html.count('<th scope="row" class="text">0.5</th>') == html.count('<th scope="row" class="text">0.33</th>') == 1
    )


@pytest.mark.parametrize(
    ("kept", "spans"),
    [([], ()), ([3, 3], ()), ([0, 2, 2, 4], ((0, 4),)), ([6, 8, 0, 2, 4, 6], ((0, 2), (4, 8))),
     ([0, 4, 2, 3, 3, 6], ((0, 6),))],
)  # fmt: skip
def test_the_map_in_order(kept: list[int], spans: tuple[tuple[int, int], ...]) -> None:
    assert merged(kept) == spans
