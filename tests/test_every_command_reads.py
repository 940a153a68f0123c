"""What one command reads, every command reads: the same texts out of every kind of file, its column found by itself."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from nopad.bench.workloads import OwnTexts, Source
from nopad.runtime.bundle import open_bundle
from nopad.runtime.cli import run
from nopad.runtime.data.labelled import read_labelled
from nopad.runtime.data.table import DataSource
from nopad.runtime.planning.lengths import lengths_of_texts, open_model

ROWS = [("a dull film", "negative"), ('so "so",\nreally', "negative"), ("splendid; go and see it", "positive")]
FRAME = pandas.DataFrame(ROWS, columns=["Review", "Sentiment"])


def _saved(path: Path) -> None:
    import datasets

    # The names of the classes in another order than the bundle's.
    names = datasets.ClassLabel(names=["positive", "negative"])
    features = datasets.Features({"Review": datasets.Value("string"), "Sentiment": names})
    rows = [{"Review": text, "Sentiment": names.str2int(label)} for text, label in ROWS]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(path)


def _classes(path: Path) -> None:
    for number, (text, label) in enumerate(ROWS):
        (path / label).mkdir(parents=True, exist_ok=True)
        (path / label / f"{number}.txt").write_bytes(text.encode())


KINDS: dict[str, Callable[[Path], Any]] = {
    "t.csv": lambda path: FRAME.to_csv(path, sep=";", index=False, encoding="utf-8-sig"),
    "t.tsv": lambda path: FRAME.to_csv(path, sep="\t"),
    "t.json": lambda path: FRAME.to_json(path),
    "t.jsonl.gz": lambda path: path.write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in FRAME.to_dict("records")).encode())
    ),
    "t.parquet": lambda path: FRAME.to_parquet(path),
    "t.xlsx": lambda path: FRAME.to_excel(path, index=False),
    "saved": _saved,
    "classes": _classes,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_reads_every_kind(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / kind
    KINDS[kind](path)
    embedded = open_bundle(verify=False)

    labelled = read_labelled(DataSource(path=str(path)), embedded.manifest)  # parity
    assert labelled.texts == [text for text, _ in ROWS]
    wanted = [[float(name == label) for name in embedded.manifest.labels] for _, label in ROWS]
    assert np.array_equal(labelled.targets, wanted)

    measured = Source(embedded, None).own(OwnTexts(source=DataSource(path=str(path))), 3)  # bench
    assert list(measured.texts) == labelled.texts and measured.targets is not None

    planned = lengths_of_texts(open_model(None), DataSource(path=str(path)))  # plan
    assert planned.counts == Counter(measured.workload.lengths) and not planned.failed

    assert run(["predict", "--input", str(path), "--keep", "*", "--threads", "1"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["tokens"] for answer in answers] == list(measured.workload.lengths)
    if kind != "classes":
        assert [answer["Review"] for answer in answers] == labelled.texts


def test_encoding_and_columns_reach_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('"caf\xe9, dull",0\nsplendid,1\n'.encode("cp1252"))
    options = ["--encoding", "cp1252", "--columns", "text,label", "--json"]
    assert run(["predict", "--input", str(path), "--threads", "1", *options]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert run(["plan", "--data", str(path), *options]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["texts"], planned["rows_failed"]) == (2, 0)
    for command in ("train", "parity", "calibrate", "bench", "export", "tune"):
        assert run([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "--encoding" in shown and "--columns" in shown
