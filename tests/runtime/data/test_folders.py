"""Folders of data in the layouts of disks and of the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas
import pytest
from reading import outcome, records, texts

from nopad.runtime.data.folders import find_parts
from nopad.runtime.data.records import open_table
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import InputFileError


def parquet(path: Path, *found: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame({"text": found}).to_parquet(path)


LAYOUTS = {
    "files": ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"],
    "data": ["data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"],
    "configuration": ["plain_text/train-0", "plain_text/train-1", "plain_text/test-0"],
    "a folder per split": ["train/0000", "train/0001", "test/0000"],
    "a folder per split in data": ["data/train/part-2", "data/train/part-10", "data/test/0"],
    "an archive": ["set/data/train-0", "set/data/train-1", "set/data/test-0"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_hub(layout: str, tmp_path: Path) -> None:
    for name, content in zip(LAYOUTS[layout], (["a", "b"], ["c"], ["d"]), strict=True):
        parquet(tmp_path / f"{name}.parquet", *content)
    for name in ("dataset_infos.json", "config.json", ".hidden.json", "data/state.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "README.md").write_text("no data")
    assert list(find_parts(tmp_path)) == ["train", "test"]
    assert texts(f"{tmp_path}#train") == ["a", "b", "c"] and texts(f"{tmp_path}#test") == ["d"]
    with open_table(f"{tmp_path}#train") as table:
        assert [number for number, _ in table.items] == [1, 2, 3]
        assert table.place(3).endswith(f"{LAYOUTS[layout][1]}.parquet, row 1")


def test_compressed_shards_and_bad_rows_in_them(tmp_path: Path) -> None:
    for number, rows in enumerate((["a", "b"], ["c"])):
        lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
        pandas.Series([lines]).to_csv(tmp_path / "x", index=False, header=False, quoting=3, escapechar="\0", sep="\1")
        (tmp_path / f"part-{number}.jsonl").write_text(lines + "{broken\n")
    (tmp_path / "x").unlink()
    found = outcome(tmp_path)
    assert [found[line][0] for line in (1, 2, 3, 4, 5)] == ["a", "b", "!", "c", "!"]
    assert "part-1.jsonl, line 2: the line is not valid JSON" in found[5]


def imdb(folder: Path) -> None:
    for split in ("train", "test"):
        for name in ("pos", "neg"):
            (folder / split / name).mkdir(parents=True)
            for number in range(12):
                (folder / split / name / f"{number}_7.txt").write_text(f"{split} {name} {number}")
        (folder / split / "labeledBow.feat").write_text("0 9:1")
        (folder / split / f"urls_{name}.txt").write_text("http://x\n")
    (folder / "train" / "unsup").mkdir()
    (folder / "train" / "unsup" / "0_0.txt").write_text("no class")
    (folder / "README").write_text("x")
    (folder / "imdb.vocab").write_text("the\n")
    (folder / "imdbEr.txt").write_text("0.1\n")


def test_class_folders_without_texts_are_told(tmp_path: Path) -> None:
    for name in ("neg/1.txt", "pos/1.txt", "other/1.text", "deep/more/1.txt"):
        (tmp_path / "set" / "train" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / "train" / name).write_text(name)
    with open_table(f"{tmp_path}/set#train") as table:
        assert {record["label"] for _, record in table.items if isinstance(record, dict)} == {"neg", "pos"}
        wanted = {f"{tmp_path}/set/train/{name} is left out: it has no .txt file" for name in ("deep", "other")}
        assert set(table.remarks) == wanted


def test_class_folders_of_texts(tmp_path: Path) -> None:
    imdb(tmp_path / "aclImdb")
    for folder in (tmp_path / "aclImdb", tmp_path):
        with open_table(f"{folder}#train") as table:
            rows = [record for _, record in table.items]
            assert table.remarks == (f"{tmp_path}/aclImdb/train/unsup is left out: its texts have no class",)
            assert table.place(1).endswith("train/neg/0_7.txt")
    assert [(record["label"], record["text"]) for record in rows] == [  # type: ignore[index]
        (name, f"train {name} {number}") for name in ("neg", "pos") for number in range(12)
    ]
    assert len(records(tmp_path / "aclImdb" / "test")) == 24
    bad = tmp_path / "aclImdb" / "test" / "neg" / "3_7.txt"
    bad.write_bytes("caf\xe9".encode("latin-1"))
    message = outcome(tmp_path / "aclImdb" / "test")[4]
    assert message.startswith(f"! {bad} is not valid UTF-8") and "--encoding latin-1" in message
    assert texts(DataSource(path=str(tmp_path / "aclImdb" / "test"), encoding="latin-1"))[3] == "café"


def test_folders_that_are_no_data_or_several(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="holds no data: expected one kind of .*found 0 file"):
        find_parts(tmp_path)
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(InputFileError, match="holds no data"):
        find_parts(tmp_path)
    parquet(tmp_path / "one" / "a.parquet", "a")
    assert texts(tmp_path) == ["a"]
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with pytest.raises(InputFileError, match=r"holds several data sets \(one, two\); name one"):
        find_parts(tmp_path)
    (tmp_path / "one" / "b.csv").write_text("text\na\n")
    with pytest.raises(InputFileError, match=r"expected one kind of .*found 2 file.* of .csv and .parquet"):
        find_parts(tmp_path / "one")
