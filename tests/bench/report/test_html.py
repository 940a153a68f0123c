"""The HTML report: whole, safe, honest about what is missing, and readable in a real browser."""

import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Page, browser, chromium, violations
from sample_report import noisy, sample_report

from nopad.bench.report.html import page, write_html
from nopad.bench.schema import Noise, Report

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x00\x1b&amp;</td></style>"


class Outline(HTMLParser):
    """Tags with the names of their attributes, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def report() -> Report:
    return sample_report()


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return page(report)


def section(html: str, name: str) -> str:
    return html.split(f'<section id="{name}"', 1)[1].split("</section>", 1)[0]


def hostile(report: Report) -> Report:
    """The report with every text replaced or followed by hostile markup."""
    return replace(
        report,
        command=HOSTILE,
        created=HOSTILE,
        reference=report.reference and report.reference + HOSTILE,
        machine={f"{name}{HOSTILE}": HOSTILE for name in report.machine} | {"cpu": HOSTILE},
        versions={f"{name}{HOSTILE}": HOSTILE for name in report.versions},
        model={HOSTILE: {HOSTILE: [HOSTILE]}},
        settings={HOSTILE: HOSTILE},
        noise=replace(report.noise, verdict=HOSTILE),
        subjects=tuple(
            replace(subject, name=subject.name + HOSTILE, model=HOSTILE, engine=HOSTILE, version=HOSTILE, note=HOSTILE)
            for subject in report.subjects
        ),
        workloads=tuple(
            replace(workload, name=workload.name + HOSTILE, source=workload.source + HOSTILE)
            for workload in report.workloads
        ),
        cells=tuple(
            replace(cell, subject=cell.subject + HOSTILE, workload=cell.workload + HOSTILE, note=HOSTILE)
            for cell in report.cells
        ),
        forecasts=tuple({name: HOSTILE for name in (*row, HOSTILE)} for row in report.forecasts),
    )


def test_the_page_asks_for_nothing(html: str) -> None:
    assert not re.findall(r"https?:|[\"'(=]//|@import|url\(", html)
    links = [value for name, value in Outline(html).attributes if name in ("href", "src", "srcset", "data", "action")]
    assert links and all(link.startswith("#") for link in links)
    ids = {value for name, value in Outline(html).attributes if name == "id"}
    assert {link[1:] for link in links} <= ids


def test_its_policy_allows_its_own_style_and_script_alone(html: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [name for name, _ in Outline(html).attributes if name == "style" or name.startswith("on")]


def test_texts_stay_texts(report: Report) -> None:
    bad = page(hostile(report))
    outline = Outline(bad)
    assert [tag for tag, _ in outline.tags].count("script") == 1
    assert not {tag for tag, _ in outline.tags} & {"img", "iframe", "object", "link", "base", "form"}
    assert not [name for name, _ in outline.attributes if name.startswith("on")]
    assert "\x00" not in bad and "\x1b" not in bad
    shown = "".join(outline.text)
    # Unchanged, but for the two characters that no page can hold.
    assert shown.count(HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")) > 100


def test_every_plot_is_xml_with_a_name(report: Report) -> None:
    for text in (page(report), page(hostile(report))):
        plots = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)]
        named = [svg for svg in plots if svg.get("class") == "plot"]
        assert len(named) >= 20
        for svg in named:
            assert svg.get("role") == "img" and svg.get("aria-label")
        numbers = re.findall(r"(?:NaN|nan|inf)\b", "".join(str(svg.attrib) for plot in plots for svg in plot.iter()))
        assert not numbers


def test_everything_measured_and_not_measured_is_there(report: Report, html: str) -> None:
    summary, details, missing = (section(html, name) for name in ("summary", "details", "remarks"))
    for subject in report.subjects:
        assert f" {subject.name}<" in summary and f" {subject.name}<" in details
    for workload in report.workloads:
        assert f">{workload.name}<" in summary and f">{workload.name}<" in details
    outcomes = {cell.status for cell in report.cells}
    assert outcomes == {"ok", "missing", "out of memory", "failed", "not run"}
    for status in outcomes - {"ok"}:
        assert summary.count(f'<td class="absent">{status}</td>') == sum(cell.status == status for cell in report.cells)
        assert f">{status}<" in missing
    for reason in ("would need about 26 GB", "RuntimeError: Infer Request failed", "flash-attn is not installed"):
        assert reason in missing
    for title in ("Latency against length", "Throughput against batch", "Peak memory", "Speed and accuracy"):
        assert f">{title}</h2>" in html
    assert report.command in section(html, "reproduce")


def test_figures_are_those_of_the_times(report: Report) -> None:
    only = {"hf-sdpa": (2.0, 2.0, 2.0), "nopad-fp32": (0.5, 0.5, 0.5)}
    workload = replace(report.workloads[0], tokens=1000, limits={"fp32": 2500.0})
    cells = [
        replace(cell, seconds=only[cell.subject], rounds=(0, 1, 2), computed_tokens=1250)
        for cell in report.cells
        if cell.subject in only and cell.workload == workload.name
    ]
    subjects = tuple(subject for subject in report.subjects if subject.name in only)
    text = page(replace(report, subjects=subjects, workloads=(workload,), cells=tuple(cells)))
    assert "Against hf-sdpa on 1 workload: nopad-fp32 4.00× as fast." in text
    details = section(text, "details")
    (row,) = re.findall(r"<tr>(?:(?!</tr>).)*nopad-fp32.*?</tr>", details, flags=re.DOTALL)
    shown = [re.sub("<[^>]*>", " ", cell).split() for cell in re.findall("<td>(.*?)</td>", row)]
    assert shown[:3] == [["500", "ms"]] * 3
    assert shown[3][0] == "2,000" and shown[4] == ["4.00×", "4.00", "to", "4.00"]
    assert shown[5] == ["20.0", "%"] and shown[6] == ["80.0", "%"]  # padding; of the limit


def test_forecasts_are_labelled_in_every_row(report: Report, html: str) -> None:
    text = section(html, "forecasts")
    assert text.count(">Forecast</span>") == len(report.forecasts) == 2
    assert "Nothing in this table was measured." in text
    assert ">67,246</td>" in text and ">142 ms</td>" in text and ">compute</td>" in text
    assert 'id="forecasts"' not in page(replace(report, forecasts=()))


def test_a_quiet_and_whole_run_has_no_warning(html: str) -> None:
    assert ">A fixed matrix product varied by 2.1%" in html
    assert '"verdict warn"' not in html and "doubtful" not in html.split("</style>")[1]


def test_an_incomplete_and_an_inconclusive_run_say_so_before_any_figure(report: Report) -> None:
    text = page(noisy(report))
    first = text.index('<ul class="tiles')
    assert text.count('"verdict warn"') == 2
    assert text.index("<strong>Incomplete.</strong>") < first
    assert text.index("<strong>Inconclusive.</strong> Too noisy to conclude: a fixed matrix product") < first
    alone = page(replace(report, noise=Noise(conclusive=False)))
    assert "too noisy to conclude from these times" in alone and "<strong>Incomplete." not in alone


def test_an_interval_too_wide_to_conclude_from_is_marked(report: Report) -> None:
    cells = tuple(
        replace(cell, seconds=tuple(second * (1 + n % 5) for n, second in enumerate(cell.seconds)))
        if cell.subject == "optimum"
        else cell
        for cell in report.cells
    )
    row = section(page(replace(report, cells=cells)), "summary").split(">imdb-32<")[1].split("</tr>")[0]
    cells_of_row = row.split("<td")[1:]
    starred = ["too wide to conclude from" in cell for cell in cells_of_row]
    assert starred == [subject.name == "optimum" for subject in report.subjects]


def test_one_round_has_no_interval(report: Report) -> None:
    cells = tuple(replace(cell, seconds=cell.seconds[:1], rounds=cell.rounds[:1]) for cell in report.cells)
    text = page(replace(report, cells=cells))
    assert "one round" in section(text, "summary")
    assert "whisker" not in section(text, "latency") + section(text, "speed")
    assert not re.search(r"\binf\b|\bnan\b", "".join(Outline(text).text))


@pytest.mark.parametrize("kept", [0, 1, 9])
def test_a_partial_report_is_a_page(report: Report, kept: int) -> None:
    text = page(replace(report, complete=False, cells=report.cells[:kept]))
    assert "<strong>Incomplete.</strong>" in text
    if kept:
        assert section(text, "summary").count('<td class="absent">not run</td>') >= 8 * 6 - kept
    else:
        assert 'id="summary"' not in text


def test_an_empty_report_and_one_of_forecasts_alone_are_pages(report: Report) -> None:
    empty = replace(report, machine={}, versions={}, noise=Noise(), subjects=(), workloads=(), cells=(), reference=None)
    assert "Forecasts only: nothing was measured." in page(empty)
    assert "Nothing was measured." in page(replace(empty, forecasts=()))
    unknown = page(replace(empty, forecasts=({"gpu": "x9", "speedup": 2.5},)))
    assert ">x9<" in unknown and ">2.50</td>" in unknown


def test_without_a_reference_speeds_stand_alone(report: Report) -> None:
    text = page(replace(report, reference=None))
    assert "it has no reference" in text
    assert "×" not in section(text, "summary")
    assert "times as fast" not in section(text, "latency")


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    if chromium() is None:
        pytest.skip("no Chromium on the path and none of Playwright's; install the package chromium")
    with browser() as opened:
        yield opened


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["quiet", "noisy", "hostile"])
def test_a_real_browser_shows_it_without_an_error_and_nothing_hangs_over(
    tab: Page, report: Report, tmp_path: Path, kind: str, width: int
) -> None:
    shown = {"quiet": report, "noisy": noisy(report), "hostile": hostile(report)}[kind]
    write_html(shown, tmp_path / "report.html")
    tab.problems.clear()
    tab.requests.clear()
    tab.open(tmp_path / "report.html", width=width)
    inside, wide = tab.value("[innerWidth, document.documentElement.scrollWidth]")
    assert inside == width and 0 < wide <= width
    assert tab.value("document.querySelectorAll('svg.plot').length") >= 20
    assert tab.problems == []
    assert tab.requests == [(tmp_path / "report.html").as_uri()]


def test_a_real_browser_runs_its_script_and_knows_the_dark(tab: Page, report: Report, tmp_path: Path) -> None:
    write_html(report, tmp_path / "report.html")
    grounds = []
    for dark in (False, True):
        tab.open(tmp_path / "report.html", width=1280, dark=dark)
        assert violations(tab) == []
        grounds.append(tab.value("getComputedStyle(document.body).backgroundColor"))
    light, dark_ground = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in grounds)
    assert light > 600 and dark_ground < 150
    dimmed = "[...document.querySelectorAll('.plot .dim')].map(shape => shape.dataset.s)"
    assert tab.value(dimmed) == []
    tab.value("document.querySelector('.legend [data-s=\"1\"]').click()")
    assert set(tab.value(dimmed)) == {"0", "2", "3", "4", "5", "6", "7"}
    tab.value("document.querySelector('.legend [data-s=\"1\"]').click()")
    assert tab.value(dimmed) == []
