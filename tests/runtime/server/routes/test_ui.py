"""The playground in a real browser: each task is clicked through, and the page is held to its promises."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from browser import Page, browser, chromium, violations
from running_server import Running, answers_with

from nopad.runtime.bundle import DEFAULT_CHECKPOINT

TEXT = "A dull film 🎬. But I loved it!"
OTHERS = ("modernbert-token", "modernbert-embed-cls", "modernbert-rerank", "modernbert-mlm")
needs_chromium = pytest.mark.skipif(chromium() is None, reason="no Chromium here")
# As a reader has it: what is not shown is not read.
READ = "document.querySelector({}).innerText"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    running = Running({"default": None, "again": None}, max_batch=4).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def page(tab: Page, server: Running) -> Iterator[Page]:
    """The page, opened anew; nothing may have gone wrong in it, and it asks nobody else."""
    tab.problems.clear()
    tab.requests.clear()
    visit(tab, server.url + "/ui")
    yield tab
    assert not tab.problems
    assert all(url.startswith((server.url, "data:")) for url in tab.requests)


def visit(page: Page, url: str, width: int = 1280, dark: bool = False) -> None:
    page.open("about:blank", width=width)
    page.open(url, width=width, dark=dark)
    page.until("document.querySelector('#model').options.length > 0")


def read(page: Page, selector: str) -> str:
    return str(page.value(READ.format(json.dumps(selector))))


def count(page: Page, selector: str) -> int:
    return int(page.value(f"document.querySelectorAll({json.dumps(selector)}).length"))


def drop(page: Page, file: Path) -> None:
    dragged = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.call("Input.dispatchDragEvent", type=kind, x=200, y=300, data=dragged)


def run(page: Page) -> None:
    page.value("document.querySelector('#answers').replaceChildren()")  # so that the new one can be told
    page.click("#run")
    page.until("document.querySelector('#stop').hidden && document.querySelector('#answers').children.length > 0")


def test_the_files_are_served_with_a_strict_policy_and_without_a_key(serve: Callable[..., Any]) -> None:
    locked = serve("default", keys=("secret",))
    html = httpx.get(locked.url + "/ui")
    assert html.status_code == 200 and html.headers["content-type"].startswith("text/html")
    policy = html.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for name, kind in (("app.js", "text/javascript"), ("style.css", "text/css")):
        part = httpx.get(f"{locked.url}/ui/{name}")
        assert part.status_code == 200 and part.headers["content-type"].startswith(kind)
        assert part.headers["x-content-type-options"] == "nosniff"
    assert httpx.get(locked.url + "/ui/x.js").status_code == 404
    assert httpx.get(locked.url + "/ui/..%2fapp.py").status_code == 404
    assert httpx.get(locked.url + "/health/state").status_code == 401
    assert httpx.get(locked.url + "/").content == b""  # as the protocols need it


def test_it_can_be_left_out(serve: Callable[..., Any]) -> None:
    without = serve("default", ui=False)
    assert httpx.get(without.url + "/ui").status_code == 404
    assert httpx.get(without.url + "/ui/app.js").status_code == 404


@needs_chromium
def test_a_text_is_classified_with_what_the_server_tells(page: Page, server: Running) -> None:
    page.type("#text", TEXT)
    run(page)
    (answer,) = server.models.find("default").model.predict([TEXT])
    shown = read(page, "#answers")
    assert answer.label in read(page, "#answers .answer")
    for label, score in answer.scores.items():
        assert f"{label}" in shown and f"{score:.3f}" in shown
    assert f"{answer.tokens} in, {answer.tokens_used} used" in shown
    assert all(word in shown for word in ("onnx-cpu", "fp32", "Queue", "Run", "On the server", "Round trip"))
    assert answer.label in read(page, "#status")  # a live region


@needs_chromium
def test_words_are_marked_and_the_method_can_be_changed(page: Page, server: Running) -> None:
    page.type("#text", TEXT)
    run(page)
    page.click("#explain")
    page.until("document.querySelectorAll('#explanations mark').length > 5")
    (found,) = server.models.find("default").model.explain([TEXT])
    marks = page.value("[...document.querySelectorAll('#explanations mark')].map((mark) => mark.textContent)")
    assert marks == [each.text for each in found.attributions]  # also after an emoji
    assert read(page, "#explanations .text") == TEXT
    kinds = page.value("[...document.querySelectorAll('#explanations mark')].map((mark) => mark.className)")
    assert kinds == ["against" if each.score < 0 else "for" for each in found.attributions]
    assert page.value("document.querySelector('#method option[value=integrated-gradients]').disabled")
    page.choose("#unit", "sentence")
    page.until("document.querySelectorAll('#explanations mark').length === 2")
    page.choose("#method", "shapley")
    page.until("document.querySelector('#explanations').innerText.includes('4 runs')")


@needs_chromium
def test_two_models_beside_each_other_and_a_link_to_it(page: Page, server: Running) -> None:
    page.type("#text", TEXT)
    page.choose("#other", "again")
    run(page)
    assert count(page, "#answers article") == 2
    assert "Both say" in read(page, "#verdict") and "at most 0.0000" in read(page, "#verdict")
    page.click("#explain")
    page.until("document.querySelectorAll('#explanations article').length === 2")
    page.click("#share")
    link = page.until("location.hash.length > 20 && location.href")
    assert TEXT not in link
    visit(page, link)
    page.until("document.querySelectorAll('#explanations article').length === 2")
    assert page.value("document.querySelector('#text').value") == TEXT
    visit(page, server.url + "/ui#notastate")
    assert count(page, "#answers article") == 0


@needs_chromium
def test_files_are_read_asked_in_parts_and_opened_text_by_text(page: Page, tmp_path: Path) -> None:
    rows = [f"film {n}, splendid" for n in range(9)]
    files = {
        "a.txt": "\n".join([*rows, "", " "]),
        "b.csv": "id,review\n" + "\n".join(f'{n},"{row}"' for n, row in enumerate(rows)),
        "c.jsonl": "\n".join([*(json.dumps({"text": row, "n": 1}) for row in rows), "{broken"]),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        drop(page, tmp_path / name)
        page.until(f"document.querySelector('#file-name').innerText === {json.dumps(name)}")
        run(page)
        assert count(page, "#answers tbody tr") == 9, name
        assert "3 requests" in read(page, "#answers")  # of four texts at most
        assert "film 8, splendid" in read(page, "#answers")
        if name == "c.jsonl":
            assert "rows 10" in read(page, "#file-rows")
    page.click("#answers tbody button")
    page.until("document.querySelector('#answers .answer')")
    assert page.value("document.querySelector('#text').value") == rows[0]
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\x00")
    drop(page, tmp_path / "d.txt")
    page.until("document.querySelector('#problem').innerText.includes('UTF-8')")


@needs_chromium
def test_texts_that_two_models_label_otherwise_are_listed(
    page: Page, server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two.txt").write_text("splendid\na dull film\n")
    one, two = server.models.find("again").model.predict(["splendid", "a dull film"])
    answers_with(server.models.find("again").model, [two, one], monkeypatch)
    drop(page, tmp_path / "two.txt")
    page.until("!document.querySelector('#file-field').hidden")
    page.choose("#other", "again")
    run(page)
    assert "0 of 2 texts" in read(page, "#verdict")
    assert count(page, "#verdict tbody tr") == 2 and "splendid" in read(page, "#verdict tbody")


@needs_chromium
def test_what_is_wrong_is_said_and_markup_stays_text(page: Page) -> None:
    page.click("#run")
    page.until("document.querySelector('#problem').innerText.includes('first')")
    hostile = "<img src=x onerror=alert(1)> <script>alert(2)</script>"
    page.type("#text", hostile)
    run(page)
    page.click("#explain")
    page.until("document.querySelectorAll('#explanations mark').length > 0")
    assert read(page, "#explanations .text") == hostile
    assert count(page, "main img, main script") == 0
    page.type("#text", "word " * 1200)
    run(page)
    assert "Cut to max length" in read(page, "#answers")
    page.choose("#method", "shapley")
    page.click("#explain")
    page.until("document.querySelector('#explanations .problem')")
    assert "500000 are allowed" in read(page, "#explanations .problem")
    page.problems[:] = [each for each in page.problems if "422" not in each]  # the console tells of it


@needs_chromium
def test_all_of_it_works_from_the_keyboard(page: Page) -> None:
    page.value("document.activeElement.blur()")
    seen = []
    for _ in range(14):
        page.press("Tab", code=9)
        seen.append(page.value("document.activeElement.id || document.activeElement.className"))
    assert seen[0] == "skip"
    order = [name for name in seen if name in ("share", "theme", "model", "other", "text", "run", "file", "example")]
    assert order[:8] == ["share", "theme", "model", "other", "text", "run", "file", "example"]
    page.value("document.querySelector('#text').focus()")
    page.call("Input.insertText", text=TEXT)
    page.press("Enter", control=True, code=13)
    page.until("document.querySelector('#answers .answer')")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.value(outline) != "none"


@needs_chromium
def test_a_key_is_asked_for_and_kept_in_the_tab(tab: Page, serve: Callable[..., Any]) -> None:
    locked = serve("default", keys=("secret",))
    tab.open(locked.url + "/ui", width=1280)
    tab.until("document.querySelector('#key-dialog').open")
    tab.type("#key-value", "secret")
    tab.click("#key-dialog button")
    tab.until("document.querySelector('#model').options.length > 0")
    tab.type("#text", TEXT)
    run(tab)
    assert "positive" in read(tab, "#answers")


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_it_is_accessible_and_fits(page: Page, server: Running, width: int, dark: bool) -> None:
    visit(page, server.url + "/ui", width=width, dark=dark)
    page.choose("#other", "again")
    page.click("#example")
    page.until("document.querySelectorAll('#answers article').length === 2")
    page.click("#explain")
    page.until("document.querySelectorAll('#explanations article').length === 2")
    assert violations(page) == []
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    page.choose("#theme", "light" if dark else "dark")
    found = violations(page)
    page.choose("#theme", "")
    assert found == []


@pytest.fixture
def other(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], tmp_path: Path) -> Iterator[Running]:
    """A server of a tiny model of another task, which no gate has judged."""
    from reference_models import CASES

    from nopad.export.bundle import write_bundle
    from nopad.model.checkpoint.load import load_checkpoint

    name = request.param
    write_bundle(load_checkpoint(checkpoint(name), **CASES[name].load), tmp_path, cpu=("fp32",))
    running = Running({name: tmp_path}, {"allow_unverified": True}, max_batch=4).start()
    yield running
    running.stop()


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS, indirect=True)
def test_each_other_task_is_asked_and_shown(tab: Page, other: Running) -> None:
    tab.problems.clear()
    visit(tab, other.url + "/ui")
    served = other.models.find(None)
    name, model = served.name, served.model
    if name == "modernbert-mlm":
        tab.type("#text", f"a {model.manifest.mask_token} film and a {model.manifest.mask_token} one")
        run(tab)
        assert count(tab, "#answers ol.scores") == 2
        (filled,) = model.fill([tab.value("document.querySelector('#text').value")])
        assert filled.masks[0][0][0] in read(tab, "#answers ol.scores")
    else:
        tab.click("#example")
        tab.until("document.querySelector('#answers').children.length > 0")
    texts = str(tab.value("document.querySelector('#text').value"))
    if name == "modernbert-token":
        (tagged,) = model.tag([texts])
        marks = tab.value("[...document.querySelectorAll('#answers mark')].map((mark) => mark.firstChild.textContent)")
        assert marks == [each.text for each in tagged.entities]
        assert count(tab, "#answers tbody tr") == (len(marks) if marks else 0)
    if name == "modernbert-embed-cls":
        vectors = model.embed(texts.splitlines())
        cosine = vectors[0] @ vectors[1] / (vectors[0] @ vectors[0] * (vectors[1] @ vectors[1])) ** 0.5
        assert count(tab, "#answers td.heat") == 25 and count(tab, "#answers circle") == 5
        cell = tab.value("document.querySelectorAll('#answers td.heat')[1].innerText")
        assert float(cell) == pytest.approx(float(cosine), abs=0.0051)
    if name == "modernbert-rerank":
        ranked = model.rerank(str(tab.value("document.querySelector('#query').value")), texts.splitlines())
        shown = tab.value("[...document.querySelectorAll('#answers .scores .part')].map((part) => part.innerText)")
        assert shown == [each.text for each in ranked]
        tab.click("#explain")
        tab.until("document.querySelectorAll('#explanations .text').length === 2")
    assert not tab.problems


@needs_chromium
@pytest.mark.slow
def test_a_model_that_is_added_can_be_compared_with_the_other_precision(tab: Page, tmp_path: Path) -> None:
    from nopad.export.bundle import write_bundle
    from nopad.model.checkpoint.load import load_checkpoint

    models = tmp_path / "models"
    (models / "both").mkdir(parents=True)
    write_bundle(load_checkpoint(DEFAULT_CHECKPOINT), models / "both", cpu=("fp32", "int8"))
    options = {"precision": "fp32", "allow_unverified": True}
    server = Running({"exact": models / "both"}, options, admin_keys=("secret",), model_dirs=(models,)).start()
    tab.problems.clear()
    try:
        visit(tab, server.url + "/ui")
        assert count(tab, "#model option") == 1
        change = {"bundle": "both", "precision": "int8"}
        headers = {"authorization": "Bearer secret"}
        added = httpx.post(f"{server.url}/admin/models/small", json=change, headers=headers, timeout=60)
        assert added.status_code == 200, added.text
        visit(tab, server.url + "/ui")
        tab.choose("#model", "exact")
        tab.choose("#other", "small")
        tab.type("#text", TEXT)
        run(tab)
        answers = [server.models.find(name).model.predict([TEXT])[0] for name in ("exact", "small")]
        gap = max(abs(answers[0].scores[label] - answers[1].scores[label]) for label in answers[0].scores)
        assert gap > 0 and f"at most {gap:.4f}" in read(tab, "#verdict")
        shown = tab.value("[...document.querySelectorAll('#answers article')].map((article) => article.innerText)")
        for text, precision, answer in zip(shown, ("fp32", "int8"), answers, strict=True):
            assert precision in text and f"{answer.score:.3f}" in text
        assert not tab.problems
    finally:
        server.stop()
