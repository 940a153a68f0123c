"""Steps that change an output in its place: who must run when it is made anew, changed again, or cut short."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nopad.pipeline.digests import digest_of
from nopad.pipeline.freshness import key_of, parts_of, why_stale
from nopad.pipeline.recipe import read_recipe
from nopad.pipeline.record import Book, Output, Record
from nopad.pipeline.steps import Step, compile_steps

RECIPE = """
export:
  checkpoint: somewhere
bench early:
  bundle: $export
calibrate:
  data: rows.jsonl
parity:
  reference: somewhere
bench:
"""


@pytest.fixture
def steps(tmp_path: Path) -> tuple[Step, ...]:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "r.yaml").write_text(RECIPE)
    for name in ("export", "bench-early", "bench"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("as the step has left it")
    (tmp_path / "calibrate.svg").write_text("<svg/>")
    return compile_steps(read_recipe(tmp_path / "r.yaml", {}), tmp_path)


@pytest.fixture
def book(steps: tuple[Step, ...]) -> Book:
    """All of them have run, one after the other."""
    book = Book()
    for step in steps:
        parts = parts_of(step, steps, book, digest_of)
        outputs = dict(book.outputs)
        if step.output is not None:
            now = digest_of(step.output)
            outputs[step.name] = Output(made=now, now=now)
        if step.changes is not None:
            before = outputs[step.changes]
            changed_by = {**before.changed_by, step.name: key_of(parts)}
            outputs[step.changes] = dataclasses.replace(before, changed_by=changed_by)
        record = Record(parts=parts, state="done", started="", exit_code=0)
        book = Book(records={**book.records, step.name: record}, outputs=outputs)
    return book


def stale(steps: tuple[Step, ...], book: Book) -> dict[str, str]:
    whys = {step.name: why_stale(step, steps, book, digest_of) for step in steps}
    return {name: why for name, why in whys.items() if why is not None}


def export_is(book: Book, **fields: object) -> Book:
    outputs = {**book.outputs, "export": dataclasses.replace(book.outputs["export"], **fields)}  # type: ignore[arg-type]
    return dataclasses.replace(book, outputs=outputs)


def test_nothing_runs_where_all_is_as_it_was(steps: tuple[Step, ...], book: Book) -> None:
    assert stale(steps, book) == {}


def test_a_bundle_that_was_made_anew_alike_is_changed_again(steps: tuple[Step, ...], book: Book) -> None:
    assert stale(steps, export_is(book, changed_by={})) == {
        "calibrate": "export was made anew",
        "parity": "calibrate has changed",
        "bench": "calibrate has changed",  # and `bench early`, which reads it before that, holds
    }


def test_a_bundle_that_came_out_differently_is_followed_by_all(steps: tuple[Step, ...], book: Book) -> None:
    assert stale(steps, export_is(book, made="other", changed_by={})) == dict.fromkeys(
        ("bench early", "calibrate", "parity", "bench"), "export has changed"
    )


def test_a_change_in_its_place_that_was_cut_short_is_noticed(steps: tuple[Step, ...], book: Book) -> None:
    assert steps[0].output is not None
    (steps[0].output / "file").write_text("half of a calibration")
    assert stale(steps, book) == {"export": "export was changed by others"}


def test_an_order_that_changes_what_is_read_counts(steps: tuple[Step, ...], book: Book) -> None:
    export, early, calibrate, parity, bench = steps
    assert stale((export, calibrate, early, parity, bench), book) == {"bench early": "calibrate has changed"}


@pytest.mark.parametrize("name", ["bench early", "bench"])
def test_a_bundle_is_made_anew_for_who_reads_it_as_it_was_before_a_change(
    name: str, steps: tuple[Step, ...], book: Book
) -> None:
    """What a step above the calibration finds must not depend on how often the recipe has run."""
    records = {**book.records, name: dataclasses.replace(book.records[name], parts={})}
    expected = {name: "nopad None became "}
    if name == "bench early":
        expected["export"] = "bench early reads it as it was before calibrate"
    found = stale(steps, dataclasses.replace(book, records=records))
    assert found.keys() == expected.keys() and all(found[step].startswith(why) for step, why in expected.items())


def test_a_bundle_that_was_only_judged_since_is_not_made_anew(steps: tuple[Step, ...], book: Book) -> None:
    """A parity check changes the bundle's verdict, not its answers."""
    export, early, _, parity, bench = steps
    changed_by = {"parity": book.outputs["export"].changed_by["parity"]}
    book = export_is(
        dataclasses.replace(book, records={**book.records, "bench early": failed(book)}), changed_by=changed_by
    )
    assert stale((export, early, parity, bench), book).keys() == {"bench early", "parity", "bench"}


def failed(book: Book) -> Record:
    return dataclasses.replace(book.records["bench early"], state="failed")


def test_a_link_to_the_folder_that_it_lies_in_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    alone = digest_of(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    assert digest_of(tmp_path) == alone
