"""`nopad analyze`: its figures against their definitions, what fails alone, what is refused, and the page."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from browser import browser, chromium, violations
from sklearn.metrics import confusion_matrix, f1_score

from nopad.model.head import sigmoid
from nopad.runtime.bundle import DEFAULT_BUNDLE, open_bundle, write_manifest
from nopad.runtime.cli import run
from nopad.runtime.manifest import Calibration
from nopad.runtime.model import Model
from nopad.runtime.predictor import load

Capture = pytest.CaptureFixture[str]
PARTS = (
    "a dull film",
    "splendid",
    "not bad",
    "so so",
    "an hour I want back",
    "see it",
    "I fell asleep",
    "a masterpiece",
)
TEXTS = [f"{PARTS[n % 8]}, {PARTS[n // 8 % 8]} and {PARTS[n // 64]}" for n in range(160)]
LABELS = [("negative", "positive")[n] for n in np.random.default_rng(0).integers(0, 2, len(TEXTS))]


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"text": text, "label": label, "source": "ab"[len(text) % 2]} for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    return jsonl(tmp_path / "test.jsonl", rows)


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the embedded bundle with another manifest."""

    def make(name: str = "changed", **fields: Any) -> Path:
        folder = Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / name))
        write_manifest(folder, dataclasses.replace(open_bundle(folder).manifest, **fields))
        return folder

    return make


def analyzed(capsys: Capture, tmp_path: Path, *arguments: object, code: int = 0) -> dict[str, Any]:
    """Run it with --json; the object that it prints, which must be the one in the file."""
    output = tmp_path / "page.html"
    options = ["--output", str(output), "--threads", "1", "--json", "--quiet"]
    assert run(["analyze", *map(str, arguments), *options]) == code
    out, err = capsys.readouterr()
    assert err == ""
    value: dict[str, Any] = json.loads(out)
    assert value.pop("output") == str(output)
    assert value == json.loads(output.with_suffix(".json").read_text())
    return value


def refused(capsys: Capture, code: int, *arguments: object) -> str:
    assert run(["analyze", *map(str, arguments), "--threads", "1", "--quiet"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    return err


def answers(folder: Path, texts: Sequence[str]) -> list[Any]:
    with load(folder, threads=1) as model:
        return model.predict(list(texts), return_logits=True)


def test_figures_are_those_of_the_answers(data: Path, tmp_path: Path, capsys: Capture) -> None:
    found = analyzed(capsys, tmp_path, "--data", data, "--slice-field", "source", "--explain", 2, "--rows", 7)
    got = answers(DEFAULT_BUNDLE, TEXTS)
    given = [answer.label for answer in got]
    right = np.array([a == b for a, b in zip(given, LABELS, strict=True)])
    (result,) = found["results"]
    classes = result["classes"]
    assert found["rows"] == len(TEXTS) and found["bad"] == [] and found["comparison"] is None
    assert classes["accuracy"]["value"] == pytest.approx(right.mean())
    assert classes["confusion"] == confusion_matrix(LABELS, given, labels=found["labels"]).tolist()
    assert classes["macro_f1"]["value"] == pytest.approx(f1_score(LABELS, given, average="macro"))
    assert sum(one["count"] for one in classes["bins"]) == len(TEXTS)
    assert sum(group["rows"] for group in result["lengths"]) == len(TEXTS)
    for group in result["slices"]["source"]:
        mask = np.array(["ab"[len(text) % 2] == group["name"] for text in TEXTS])
        assert (group["rows"], group["score"]["value"]) == (mask.sum(), pytest.approx(right[mask].mean()))
    wrong = sorted((n for n in range(len(TEXTS)) if not right[n]), key=lambda n: -got[n].score)
    assert result["wrong"] == len(wrong)
    assert [one["certainty"] for one in result["mistakes"]] == pytest.approx(
        [got[n].score for n in wrong[:7]], abs=1e-6
    )
    assert [bool(one["explanation"]) for one in result["mistakes"]] == [True] * 2 + [False] * 5
    explanation = result["mistakes"][0]["explanation"]
    assert explanation["label"] == result["mistakes"][0]["given"] and explanation["method"] == "occlusion"


def test_bad_rows_fail_alone_and_unknown_labels_are_named(tmp_path: Path, capsys: Capture) -> None:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    rows[3] = {"text": TEXTS[3], "label": "neutral"}
    rows[5] = {"text": "  ", "label": "negative"}
    rows[8] = {"text": TEXTS[8]}
    rows[9] = {"text": "half a character \ud800", "label": "negative"}
    rows[11] = {"text": TEXTS[11], "label": "neutral"}
    path = jsonl(tmp_path / "rows.jsonl", rows)
    with path.open("a") as file:
        file.write("{broken\n")
    found = analyzed(capsys, tmp_path, "--data", path, "--explain", 0, code=3)
    assert [row["line"] for row in found["bad"]] == [4, 6, 9, 10, 12, len(TEXTS) + 1]
    assert found["unknown"] == {"neutral": [4, 12]}
    assert found["rows"] == len(TEXTS) - 5
    good = [n for n in range(len(TEXTS)) if n not in (3, 5, 8, 9, 11)]
    given = [answer.label for answer in answers(DEFAULT_BUNDLE, [TEXTS[n] for n in good])]
    share = np.mean([a == LABELS[n] for a, n in zip(given, good, strict=True)])
    assert found["results"][0]["classes"]["accuracy"]["value"] == pytest.approx(share)
    page = (tmp_path / "page.html").read_text()
    assert "(2 rows: 4, 12) is none of the model&#x27;s" in page and "Rows that could not be used" in page

    assert (
        run(["analyze", "--data", str(path), "--explain", "0", "-o", str(tmp_path / "p.html"), "--threads", "1"]) == 3
    )
    assert "label 'neutral' (2 rows: 4, 12) is none of the model's (negative, positive)" in capsys.readouterr().err


def test_two_bundles_what_changed(data: Path, changed: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    other = changed(calibration=Calibration(temperature=1.0, thresholds=(0.3, 0.7)))
    found = analyzed(capsys, tmp_path, DEFAULT_BUNDLE, other, "--data", data, "--explain", 0, "--allow-unverified")
    first, second = ([a.label for a in answers(folder, TEXTS)] for folder in (DEFAULT_BUNDLE, other))
    truth = np.array(LABELS)
    worse = [n + 1 for n in range(len(TEXTS)) if first[n] == truth[n] != second[n]]
    better = [n + 1 for n in range(len(TEXTS)) if first[n] != truth[n] == second[n]]
    assert worse and better
    what = found["comparison"]
    assert (what["worse"]["lines"], what["better"]["lines"]) == (worse, better)
    assert what["p_value"] == pytest.approx(scipy.stats.binomtest(len(worse), len(worse) + len(better)).pvalue)
    assert what["agreement"]["value"] == pytest.approx(np.mean([a == b for a, b in zip(first, second, strict=True)]))
    assert what["difference"]["value"] == pytest.approx((len(better) - len(worse)) / len(TEXTS))
    shown = what["worse"]["shown"][0]
    assert shown["text"] == TEXTS[shown["line"] - 1] and shown["first"] == shown["truth"] != shown["second"]
    page = (tmp_path / "page.html").read_text()
    assert "Right, now wrong" in page and shown["text"] in page


def test_labels_in_another_order_are_the_same_labels(
    data: Path, changed: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    """Their names are swapped, so every answer is."""
    swapped = changed(labels=("positive", "negative"))
    found = analyzed(capsys, tmp_path, DEFAULT_BUNDLE, swapped, "--data", data, "--explain", 0, "--allow-unverified")
    assert found["comparison"]["agreement"]["value"] == 0.0
    one, two = (result["classes"]["accuracy"]["value"] for result in found["results"])
    assert one + two == pytest.approx(1.0)


def test_texts_of_the_training_data_are_found(data: Path, tmp_path: Path, capsys: Capture) -> None:
    long = " ".join(f"word{n}" for n in range(60))
    rows = [
        {"text": TEXTS[4].upper(), "label": "negative" if LABELS[4] == "positive" else "positive"},
        {"text": TEXTS[7], "label": LABELS[7]},
        {"text": "something else", "label": "negative"},
        {"text": f"{long} end", "label": "negative"},
    ]
    train = jsonl(tmp_path / "train.jsonl", rows)
    with data.open("a") as file:
        file.write(json.dumps({"text": long, "label": "negative"}) + "\n")
        file.write(json.dumps({"text": TEXTS[0], "label": LABELS[0]}) + "\n")
    found = analyzed(capsys, tmp_path, "--data", data, "--train", train, "--explain", 0)
    both = found["train"]
    assert (both["rows"], both["exact"], both["near"], both["conflicts"]) == (3, 2, 1, 1)
    assert [(pair["line"], pair["other_line"]) for pair in both["pairs"]] == [(5, 1), (8, 2), (len(TEXTS) + 1, 4)]
    assert [pair["exact"] for pair in both["pairs"]] == [True, True, False]
    assert found["repeats"]["rows"] == 1 and found["train_rows"] == 4
    assert found["repeats"]["pairs"][0]["line"] == len(TEXTS) + 2


def test_several_labels(changed: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    several = changed(problem_type="multi_label_classification")
    draw = np.random.default_rng(2)
    targets = draw.integers(0, 2, (len(TEXTS), 2))
    names = np.array(["negative", "positive"])
    rows = [{"text": t, "label": names[hot == 1].tolist()} for t, hot in zip(TEXTS, targets, strict=True)]
    data = jsonl(tmp_path / "several.jsonl", rows)
    found = analyzed(capsys, tmp_path, several, "--data", data, "--explain", 1, "--rows", 200, "--allow-unverified")
    (result,) = found["results"]
    p = sigmoid(np.stack([answer.logits for answer in answers(several, TEXTS)]))
    decided = p >= 0.5
    right = (decided == targets).all(axis=1)
    assert result["classes"]["accuracy"]["value"] == pytest.approx(right.mean())
    assert result["classes"]["macro_f1"]["value"] == pytest.approx(f1_score(targets, decided, average="macro"))
    assert result["classes"]["confusion"] is None
    assert len(result["mistakes"]) == result["wrong"] == (~right).sum()
    certainty = np.where(decided == targets, 0, np.where(decided, p, 1 - p)).max(axis=1)
    assert [one["certainty"] for one in result["mistakes"]] == pytest.approx(sorted(certainty[~right])[::-1], abs=1e-6)
    assert result["mistakes"][0]["explanation"]["label"] == result["mistakes"][0]["label"]
    assert {one["given"].removeprefix("not ") for one in result["classes"]["noise"]["shown"]} <= set(names)


def test_numbers(changed: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    regression = changed(problem_type="regression")
    logits = np.stack([answer.logits for answer in answers(regression, TEXTS)])
    truth = logits + np.random.default_rng(4).normal(0, 0.5, logits.shape)
    rows = [{"text": text, "label": row.tolist()} for text, row in zip(TEXTS, truth, strict=True)]
    rows[0]["label"] = ["none", 1]
    data = jsonl(tmp_path / "numbers.jsonl", rows)
    arguments = (regression, regression, "--data", data, "--explain", 1, "--allow-unverified")
    found = analyzed(capsys, tmp_path, *arguments, code=3)
    figures = found["results"][0]["numbers"]["figures"]
    assert figures["absolute"]["value"] == pytest.approx(np.abs(logits - truth)[1:].mean(), abs=1e-5)
    ours = [scipy.stats.spearmanr(logits[1:, n], truth[1:, n]).statistic for n in (0, 1)]
    assert figures["spearman"]["value"] == pytest.approx(np.mean(ours), abs=1e-5)
    errors = [abs(one["error"]) for one in found["results"][0]["mistakes"]]
    assert errors == sorted(errors, reverse=True) and found["bad"][0]["line"] == 1
    assert found["comparison"]["other"]["rows"] == 0 and found["comparison"]["p_value"] is None


def test_what_is_refused(data: Path, changed: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    page = ("--output", tmp_path / "p.html")
    assert "HTML file" in refused(capsys, 2, "--data", data, "--output", tmp_path / "page.svg")
    assert "does not exist" in refused(capsys, 3, "--data", data, "--output", tmp_path / "no" / "page.html")
    assert "unexpected extra argument" in refused(capsys, 2, *[DEFAULT_BUNDLE] * 3, "--data", data, *page)
    ranking = changed("ranking", task="rerank", labels=("relevance",), problem_type=None)
    assert "is for text-classification" in refused(capsys, 2, ranking, "--data", data, *page)
    stars = changed("stars", labels=("good", "bad"))
    message = refused(capsys, 2, DEFAULT_BUNDLE, stars, "--data", data, "--allow-unverified", *page)
    assert "only the first has negative, positive; only the second has bad, good" in message
    message = refused(capsys, 3, stars, "--data", data, "--allow-unverified", *page)
    assert "none of 160 rows can be used" in message and "good, bad" in message
    texts = jsonl(tmp_path / "texts.jsonl", [{"text": "a dull film"}])
    assert "has no labels" in refused(capsys, 3, "--data", texts, *page)
    assert not (tmp_path / "p.html").exists() and not (tmp_path / "p.json").exists()


def test_ctrl_c_writes_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "explain", interrupted)
    assert run(["analyze", "--data", str(data), "-o", str(tmp_path / "p.html"), "--threads", "1", "--quiet"]) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.jsonl"]


def test_a_text_beyond_the_budget_is_explained_by_sentences_or_not(tmp_path: Path, capsys: Capture) -> None:
    words = "Dull and slow and dull. Never again, I say. "
    rows = [{"text": text, "label": "positive"} for text in (words, words * 3, "dull " * 40)]
    found = analyzed(capsys, tmp_path, "--data", jsonl(tmp_path / "d.jsonl", rows), "--budget", 16)
    by_tokens = sorted(found["results"][0]["mistakes"], key=lambda one: (one["text"].startswith("dull"), one["tokens"]))
    assert [one["explanation"] and one["explanation"]["by"] for one in by_tokens] == ["word", "sentence", "sentence"]
    rows = [{"text": "dull. " * 40, "label": "positive"}]
    found = analyzed(capsys, tmp_path, "--data", jsonl(tmp_path / "d.jsonl", rows), "--budget", 16)
    (mistake,) = found["results"][0]["mistakes"]
    assert mistake["explanation"] is None and "budget" in mistake["unexplained"]


def test_the_page_is_one_file_of_harmless_text(tmp_path: Path) -> None:
    if chromium() is None:
        pytest.skip("no Chromium here")
    evil = "<script>alert(1)</script> <img src=http://example.org/x> dull"
    rows = [{"text": f"{evil} {n}", "label": "positive", "<b>": f"<i>{n % 2}</i>"} for n in range(6)]
    data, output = jsonl(tmp_path / "evil.jsonl", rows), tmp_path / "p.html"
    options = ["--slice-field", "<b>", "--train", str(data), "-o", str(output), "--threads", "1", "--quiet"]
    assert run(["analyze", "--data", str(data), *options]) == 0
    text = output.read_text()
    assert "<script>" not in text and "<img" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    with browser() as page:
        page.open(output, width=1200)
        assert page.problems == []
        assert page.value("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.requests == [output.as_uri()]


@pytest.mark.skipif(chromium() is None, reason="no Chromium here")
def test_the_page_is_accessible_and_fits(data: Path, changed: Callable[..., Path], tmp_path: Path) -> None:
    """With all its parts: two bundles, training data, slices, explained mistakes; narrow and wide, light and dark."""
    other, output = changed(calibration=Calibration(temperature=1.0, thresholds=(0.3, 0.7))), tmp_path / "p.html"
    options = ["--train", str(data), "--slice-field", "source", "--explain", "2", "--allow-unverified", "--quiet"]
    bundles = [str(DEFAULT_BUNDLE), str(other)]
    assert run(["analyze", *bundles, "--data", str(data), *options, "-o", str(output), "--threads", "1"]) == 0
    with browser() as page:
        for width, dark in ((1280, False), (390, True)):
            page.open(output, width=width, dark=dark)
            assert page.value("document.querySelectorAll('article mark').length > 0")
            assert violations(page) == []
            assert page.value("document.documentElement.scrollWidth <= innerWidth")
        assert not page.problems


def test_taggers(bundle: Callable[[str], Path], tmp_path: Path, capsys: Capture) -> None:
    """A random tagger, against entities that are partly its own."""
    folder = tmp_path / "tagger"
    shutil.copytree(bundle("modernbert-token"), folder)
    names = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    write_manifest(folder, dataclasses.replace(open_bundle(folder).manifest, labels=names))
    with load(folder, threads=1) as model:
        tagged = model.tag(TEXTS[:40])
    own = [[{"start": e.start, "end": e.end, "label": e.label} for e in one.entities] for one in tagged]
    # A random tagger finds blanks, too, which hold no word.
    some = [
        [span for span in spans if text[span["start"] : span["end"]].strip()]
        for text, spans in zip(TEXTS, own, strict=False)
    ]
    rows: list[dict[str, Any]] = [
        {"text": text, "entities": spans[: n % 3]} for n, (text, spans) in enumerate(zip(TEXTS, some, strict=False))
    ]
    rows.append({"text": TEXTS[50], "entities": [{"start": 0, "end": 3, "label": "GENE"}]})
    rows.append({"text": TEXTS[51], "entities": [{"start": 5, "end": 3, "label": "PER"}]})
    data = jsonl(tmp_path / "marked.jsonl", rows)
    found = analyzed(capsys, tmp_path, folder, folder, "--data", data, "--train", data, code=3)
    tags = found["results"][0]["tags"]
    true, given = sum(len(row["entities"]) for row in rows[:40]), sum(map(len, own))
    assert 0 < true < given
    assert tags["f1"]["value"] == pytest.approx(2 * true / (true + given))  # all that are there are found
    right = np.mean([len(row["entities"]) == len(spans) for row, spans in zip(rows, own, strict=False)])
    assert tags["texts"]["value"] == pytest.approx(right)
    assert found["unknown"] == {"GENE": [41]} and [row["line"] for row in found["bad"]] == [41, 42]
    assert found["comparison"]["agreement"]["value"] == 1.0 and found["train"]["exact"] == 40
    certainties = [one["certainty"] for one in found["results"][0]["mistakes"]]
    assert certainties == sorted(certainties, reverse=True)
    assert "Which entities" in (tmp_path / "page.html").read_text()
    message = refused(capsys, 2, folder, "--data", data, "--second-field", "b", "--output", tmp_path / "p.html")
    assert "reads no pairs" in message


def test_words_and_their_tags_are_read_as_in_training(
    bundle: Callable[[str], Path], tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "tagger"
    shutil.copytree(bundle("modernbert-token"), folder)
    names = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    write_manifest(folder, dataclasses.replace(open_bundle(folder).manifest, labels=names))
    lines = tmp_path / "words.conll"
    lines.write_text("Ada B-PER\nLovelace I-PER\nin O\nLondon B-LOC\n\nNothing O\nhere O\n\n")
    found = analyzed(capsys, tmp_path, folder, "--data", lines)
    kinds = {one["label"]: one["rows"] for one in found["results"][0]["tags"]["kinds"]}
    assert found["rows"] == 2 and kinds == {"LOC": 1, "PER": 1}
    numbers = jsonl(tmp_path / "numbers.jsonl", [{"tokens": ["Ada", "in", "London"], "ner_tags": [3, 0, 1]}] * 2)
    again = analyzed(capsys, tmp_path, folder, "--data", numbers)
    assert {one["label"]: one["rows"] for one in again["results"][0]["tags"]["kinds"]} == {"LOC": 2, "PER": 2}
