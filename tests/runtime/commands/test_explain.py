"""`nopad explain`: marked words, JSON, a page without requests, and what cannot be explained named."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nopad.runtime.cli import run

TEXT = 'Dull & <b>slow</b>, but we "loved" the acting.'


class Marks(HTMLParser):
    """The text of a page's paragraphs, and what is marked in them."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.marked, self.inside, self.mark = "", [], False, False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = self.inside or (tag, ("class", "text")) == (tag, *attrs[:1])
        self.mark = tag == "mark"

    def handle_endtag(self, tag: str) -> None:
        self.mark = False
        self.inside = self.inside and tag != "p"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.text += data
        if self.mark:
            self.marked.append(data)


def test_words_are_printed_with_the_strongest_of_each_side(capsys: pytest.CaptureFixture[str]) -> None:
    text = "A dull film. But the acting wasn't bad; I loved it!"
    assert run(["explain", text, "--threads", "1"]) == 0
    head, shown, *sides = capsys.readouterr().out.splitlines()
    assert head.startswith("negative 0.") and "occlusion by word" in head and "onnx-cpu" in head
    assert shown == text
    assert [line.split()[0] for line in sides] == ["for", "against"]
    assert "dull" in sides[0] and "loved" in sides[1]


def test_json_has_spans_that_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--method", "shapley", "--budget", "60", "--label", "positive", "--threads", "1", "--json"]
    assert run(["explain", TEXT, "a dull film", *arguments]) == 0
    for line, text in zip(capsys.readouterr().out.splitlines(), (TEXT, "a dull film"), strict=True):
        found = json.loads(line)
        assert (found["text"], found["label"], found["method"]) == (text, "positive", "shapley")
        assert all(text[each["start"] : each["end"]] == each["text"] for each in found["attributions"])
        scores = sum(each["score"] for each in found["attributions"])
        assert found["base_value"] + scores == pytest.approx(found["value"], abs=1e-9)
        assert found["runs"] <= 60 and abs(found["residual"]) < 1e-9


def test_a_file_of_texts_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "reviews.jsonl", tmp_path / "why.html"
    rows = [{"review": TEXT}, {"review": " "}, {"review": "splendid"}, {"review": "not read"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--input", str(source), "--field", "review", "--limit", "3", "--html", str(target), "--json"]
    assert run(["explain", *arguments, "--threads", "1", "--quiet"]) == 3
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["line"] for line in lines] == [1, 2, 3] and "empty" in lines[1]["error"]
    page = target.read_text()
    seen = Marks()
    seen.feed(page)
    assert seen.text == TEXT + "splendid" and "<b>" not in page
    assert seen.marked == [each["text"] for line in (lines[0], lines[2]) for each in line["attributions"]]
    assert "default-src 'none'" in page and "style=" not in page.partition("<body>")[2] and "://" not in page


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "give either texts or --input"),
        (["dull", "--limit", "2"], 2, "are of --input"),
        (["dull", "--label", "neutral"], 2, "no label 'neutral'"),
        (["dull", "--method", "integrated-gradients"], 2, "it can do occlusion and shapley"),
        (["a dull film", "--method", "shapley", "--budget", "3"], 3, "needs a budget of at least 8 runs, not 3"),
        (["--method", "lime", "dull"], 2, "'lime' is not one of"),
        (["nowhere/", "dull"], 3, "no bundle at nowhere/"),
    ],
)
def test_what_cannot_be_explained_is_named(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", *arguments]) == code
    assert words in capsys.readouterr().err


def test_a_bundle_without_weights_for_torch_says_what_it_holds(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", str(own), "a film", "--method", "gradient-x-input"]) != 0
    assert "torch" in capsys.readouterr().err
