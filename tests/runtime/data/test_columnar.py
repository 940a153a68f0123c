"""Parquet, Arrow and saved data sets, as pandas, pyarrow and datasets write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pytest
from pyarrow import feather, ipc, parquet
from reading import outcome, records, texts

from nopad.runtime.data.records import open_table
from nopad.runtime.errors import InputFileError

TABLE = pyarrow.table(
    {
        "Text": pyarrow.array(["a film", "dull", None, "so\0so"], pyarrow.large_string()),
        "label": pyarrow.array(["pos", "neg", "neg", "pos"]).dictionary_encode(),
        "meta": [{"review": {"body": f"b{n}"}, "lang": ["en", "fr"]} for n in range(4)],
    }
)


def write(path: Path, table: Any) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=3)
    elif path.suffix == ".feather":
        feather.write_feather(table, path)
    else:
        new = ipc.new_stream if path.suffix == ".stream" else ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather", ".stream"])
def test_every_format_and_type(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"t{suffix}", TABLE)
    assert records(path) == TABLE.to_pylist()
    assert list(outcome(path).values())[:2] == ["a film", "dull"] and "is not a text" in outcome(path)[3]
    assert texts(path, "meta.review.body") == ["b0", "b1", "b2", "b3"]
    assert texts(path, "meta.lang.1") == ["fr"] * 4
    with pytest.raises(InputFileError, match=r"no column 'other' \(it has: Text, label, meta\)"):
        texts(path, "other")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputFileError, match="cannot read .*; copy or write the file again"):
        texts(path)


def test_no_rows_and_other_content_than_the_name_says(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="it has no rows"):
        texts(write(tmp_path / "t.parquet", TABLE.slice(0, 0)))
    (tmp_path / "u.parquet").write_text("text\na film\n")
    with pytest.raises(InputFileError, match="not what its name says"):
        texts(tmp_path / "u.parquet")
    write(tmp_path / "v.parquet", TABLE.select(["Text"])).rename(tmp_path / "v.csv")
    assert list(outcome(tmp_path / "v.csv").values())[0] == "a film"


def test_large_files_come_in_batches(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": [f"film {n}" for n in range(5000)], "label": 1.0})
    frame.to_parquet(tmp_path / "t.parquet")
    with open_table(str(tmp_path / "t.parquet")) as table:
        first = next(table.items)
        assert first == (1, {"text": "film 0", "label": 1.0}) and table.place(7).endswith("t.parquet, row 7")
    assert texts(tmp_path / "t.parquet") == list(frame["text"])


FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["neg", "pos"]),
        "topics": datasets.Sequence(datasets.ClassLabel(names=["a", "b", "c"])),
    }
)


def part(count: int) -> Any:
    rows = {
        "text": [f"film {n}" for n in range(count)],
        "label": [n % 2 for n in range(count)],
        "topics": [[0, 2]] * count,
    }
    return datasets.Dataset.from_dict(rows, features=FEATURES)


def test_saved_data_sets_keep_order_and_class_names(tmp_path: Path) -> None:
    saved = part(40).shuffle(seed=1)
    saved.save_to_disk(tmp_path / "one", num_shards=12)
    splits = {"train": part(5), "validation": part(3), "extra": part(2)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "several")
    for path in (tmp_path / "one", f"{tmp_path}/one#train"):
        with open_table(str(path)) as table:
            assert table.class_names == {"label": ("neg", "pos"), "topics": ("a", "b", "c")}
            items = list(table.items)
        assert [number for number, _ in items] == list(range(1, 41))
        assert [record for _, record in items] == saved.to_list()
    assert table.place(40).endswith("data-00011-of-00012.arrow, row 3")
    for name, wanted in splits.items():
        assert records(f"{tmp_path}/several#{name}") == wanted.to_list() == records(tmp_path / "several" / name)
    with pytest.raises(
        InputFileError, match="several splits: there are train, validation, extra; name one, as .*#train"
    ):
        texts(tmp_path / "several")
    with pytest.raises(InputFileError, match="has no split 'dev'"):
        texts(f"{tmp_path}/several#dev")
    (tmp_path / "one" / "data-00003-of-00012.arrow").unlink()
    with pytest.raises(InputFileError, match="data-00003-of-00012.arrow is missing"):
        texts(tmp_path / "one")


def test_parquet_of_the_hub_brings_its_class_names(tmp_path: Path) -> None:
    part(4).to_parquet(tmp_path / "t.parquet")
    with open_table(str(tmp_path / "t.parquet")) as table:
        assert table.class_names == {"label": ("neg", "pos"), "topics": ("a", "b", "c")}


def test_a_state_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    part(4).save_to_disk(tmp_path / "one")
    state = tmp_path / "one" / "state.json"
    state.write_text(state.read_text().replace("data-00000", "../data-00000"))
    with pytest.raises(InputFileError, match="names no data files beside it"):
        texts(tmp_path / "one")
