"""The HTML report: self-contained, inert whatever the corpus held, and looked at in a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from accounting_rows import job_values, small_job
from matplotlib.image import imread
from servers import binary
from sqlalchemy import insert, update

from pipeline.accounting.figures import RejectionFigures, Summary
from pipeline.accounting.report import ReportMissing, render_html
from pipeline.accounting.summary import summarise
from pipeline.storage.sql import open_engine
from schemas.tables import Base, DocumentRow, Job, Rejection

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
]
OWNED = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"]]>"
Browser = Callable[..., subprocess.CompletedProcess[str]]


def make(url: str, *changes: Any) -> Summary:
    engine = open_engine(url)
    Base.metadata.create_all(engine)
    small_job(engine)
    with engine.begin() as connection:
        for change in changes:
            connection.execute(change)
    summary = summarise(engine, "j1")
    engine.dispose()
    return summary


@pytest.fixture
def summary(sqlite_url: str) -> Summary:
    return make(sqlite_url)


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """Runs headless Chromium on a file; fails, never skips, where there is none."""
    chromium = binary("chromium", "chromium-browser", "google-chrome")
    profiles = iter(range(100))

    def run(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        profile = f"--user-data-dir={tmp_path / f'profile-{next(profiles)}'}"
        command = [chromium, *FLAGS, profile, *flags, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    return run


def written(folder: Path, html: str) -> Path:
    page = folder / "report.html"
    page.write_text(html, encoding="utf-8")
    return page


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text outside of styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def assert_self_contained(html: str) -> None:
    """No element refers to anything outside the file, and nothing can run."""
    for tag, attributes in Tags(html).tags:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form", "img", "video", "audio"}, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background", "ping"}:
                assert value == "data:," or (value or "").startswith("#"), (tag, name, value)
            for url in re.findall(r"url\(([^)]*)\)", value or ""):
                assert url.startswith("#"), (tag, name, value)
    for style in re.findall(r"<style.*?</style>", html, re.DOTALL):
        assert not re.search(r"url\(|@import|https?:", style)


def test_the_file_refers_to_nothing_outside_itself(summary: Summary) -> None:
    html = render_html(summary)
    assert_self_contained(html)
    assert html.count("<svg") == 4
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "bad",
    ['<img src="https://x/y.png">', '<a href="http://x">', "<style>@import 'x'</style>", "<p onclick='x'>",
     '<p style="background: url(https://x)">', "<script></script>"],
)  # fmt: skip
def test_the_check_itself_notices(summary: Summary, bad: str) -> None:
    with pytest.raises(AssertionError):
        assert_self_contained(render_html(summary) + bad)


def test_what_it_says(summary: Summary) -> None:
    text = " ".join("".join(Tags(render_html(summary)).text).split())
    for expected in ("4,100 → 2,070", "49.5 %", "−$0.001966", "$0.000484", "budget_too_small", "call", "r3", "doc-5",
                     "Calls whose end nobody saw", "an answer that is none: '<b>' for", "1 copied",
                     summary.spec_hash, "genai-prices:0.2", "/data/runs/night-j1/data", "2.00 s"):  # fmt: skip
        assert expected in text
    assert "hunter2" not in text


def test_ids_are_unique_and_plots_and_tables_are_named(summary: Summary) -> None:
    html = render_html(summary)
    tags = Tags(html).tags
    ids = Counter(attributes["id"] for _, attributes in tags if "id" in attributes)
    assert [name for name, number in ids.items() if number > 1] == []
    for _, attributes in tags:
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids
        for reference in re.findall(r"url\(#([^)]*)\)", " ".join(v or "" for v in attributes.values())):
            assert reference in ids
        if (attributes.get("xlink:href") or "").startswith("#"):
            assert (attributes["xlink:href"] or "")[1:] in ids
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    assert html.count("<title id=") == html.count("<desc id=") == html.count('role="img"') == 4


def test_the_same_summary_gives_the_same_file_and_leaves_matplotlib_alone(summary: Summary) -> None:
    def settings() -> dict[str, Any]:
        return {name: value for name, value in dict.items(matplotlib.rcParams) if name != "backend"}

    before = settings()
    assert render_html(summary) == render_html(summary)
    assert settings() == before


def test_pyplot_is_not_imported(sqlite_url: str) -> None:
    make(sqlite_url)
    code = (
        "import sys; from pipeline.storage.sql import open_engine; from pipeline.accounting.summary import summarise\n"
        "from pipeline.accounting.report import render_html\n"
        f"summary = summarise(open_engine({sqlite_url!r}), 'j1')\n"
        "assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules\n"
        "render_html(summary); assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("text", ["$x^{", "価格", "a" * 500, "\x00\x1b[31m", "_$\\frac"])
def test_odd_names_do_not_break_a_plot(summary: Summary, text: str) -> None:
    rejection = RejectionFigures("compress", "dead", text, 3, ())
    saving = replace(summary.savings[0], target=f"own:{text}")
    assert_self_contained(render_html(replace(summary, rejections=(rejection,), savings=(saving,))))


def test_a_job_that_has_not_begun_renders(sqlite_url: str) -> None:
    engine = open_engine(sqlite_url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(Job), [job_values(state="running", finished_at=None)])
    html = render_html(summarise(engine, "j1"))
    engine.dispose()
    assert_self_contained(html)
    assert "None" not in "".join(Tags(html).text).replace("None: every document", "")


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_without_the_packages_the_error_says_what_to_install(
    summary: Summary, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "pipeline.accounting.plots", raising=False)
    monkeypatch.delattr("pipeline.accounting.plots", raising=False)
    with pytest.raises(ReportMissing, match=f"lacks {missing}: pip install jinja2 matplotlib"):
        render_html(summary)


def hostile(url: str) -> Summary:
    return make(
        url,
        update(Job).values(name=OWNED, error=OWNED, output=OWNED, input_hash=OWNED),
        update(DocumentRow).values(doc_id=DocumentRow.doc_id + OWNED),
        update(Rejection).values(reason=OWNED, doc_id=OWNED, code=OWNED, source=Rejection.source + OWNED),
    )


def test_text_from_outside_stays_text_even_without_the_policy(
    sqlite_url: str, tmp_path: Path, browser: Browser
) -> None:
    html = render_html(hostile(sqlite_url))
    assert_self_contained(html)
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert len(policy.findall(html)) == 1
    for page in (html, policy.sub("", html)):
        dom = browser(written(tmp_path, page), "--dump-dom").stdout
        title = re.search(r"<title>(.*?)</title>", dom)
        assert title is not None and title[1].startswith("&lt;script&gt;")
    control = policy.sub("", html).replace("</body>", OWNED + "</body>")
    assert "<title>owned</title>" in browser(written(tmp_path, control), "--dump-dom").stdout


def test_a_browser_shows_it_without_complaint(summary: Summary, tmp_path: Path, browser: Browser) -> None:
    page = written(tmp_path, render_html(summary))
    shown = browser(page, "--dump-dom")
    assert "CONSOLE" not in shown.stderr
    dom = Tags(shown.stdout)
    assert Counter(tag for tag, _ in dom.tags)["svg"] == 4
    assert Counter(tag for tag, _ in dom.tags)["path"] > 20
    assert "Money saved per target price" in "".join(dom.text)
    control = browser(written(tmp_path, render_html(summary) + "<script>1</script>"), "--dump-dom")
    assert "CONSOLE" in control.stderr  # the policy refuses the script, and we would have seen it said


@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_draws_it(summary: Summary, tmp_path: Path, browser: Browser, width: int) -> None:
    picture = tmp_path / "report.png"
    browser(written(tmp_path, render_html(summary)), f"--screenshot={picture}", f"--window-size={width},3000")
    pixels = np.round(imread(picture)[:, :, :3] * 255).astype(int)
    assert pixels.shape[:2] == (3000, width)
    for colour in ("1f2933", "b45309", "b91c1c", "94a3b8", "1d4ed8"):  # text, and each kind of mark in the plots
        rgb = [int(colour[i : i + 2], 16) for i in (0, 2, 4)]
        assert (np.abs(pixels - rgb).max(axis=2) < 4).sum() > 100, colour
    assert (pixels.min(axis=2) > 250).mean() < 0.97


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_is_no_wider_than_the_screen(sqlite_url: str, tmp_path: Path, browser: Browser, width: int) -> None:
    html = re.sub(r"<meta http-equiv[^>]*>", "", render_html(hostile(sqlite_url)))
    asks = "<script>parent.postMessage(document.documentElement.scrollWidth, '*')</script>"
    (tmp_path / "inner.html").write_text(html + asks, encoding="utf-8")
    outer = tmp_path / "outer.html"
    outer.write_text(
        "<script>addEventListener('message', e => { document.title = 'width ' + e.data })</script>"
        f"<iframe src='inner.html' style='border: 0; width: {width}px; height: 2000px'></iframe>"
    )
    assert f"<title>width {width}</title>" in browser(outer, "--dump-dom", "--window-size=1600,2000").stdout


def test_it_prints(summary: Summary, tmp_path: Path, browser: Browser) -> None:
    paper = tmp_path / "report.pdf"
    browser(written(tmp_path, render_html(summary)), f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert paper.read_bytes().startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())) <= 8
