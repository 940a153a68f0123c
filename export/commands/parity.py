"""`nopad parity`."""

from __future__ import annotations

from typing import Any

import click

from nopad.export.commands.gate_report import print_report, set_threads, source_options, thorough_option
from nopad.runtime.console import (
    FILES,
    common_options,
    emit,
    labelled_options,
    messages,
    reading_options,
    status,
    threads_option,
)
from nopad.runtime.data.table import DataSource
from nopad.runtime.engines.base import ENGINES


@click.command()
@click.argument("bundle")
@click.option("--reference", "-r", required=True, help="The checkpoint the bundle was exported from.")
@click.option("--data", metavar="FILE", help=f"Texts, labelled or not: {FILES}.")
@reading_options
@labelled_options
@click.option("--engine", default="auto", help=f"Engine to check: auto, {', '.join(ENGINES)}.")
@click.option("--precision", help="Check the file of this precision. [default: what suits the engine]")
@click.option("--allow-host-code", is_flag=True, help="Run the native code in a version-compatible engine.")
@source_options
@click.option("--longest", type=click.IntRange(min=1), default=512, help="Longest length of the grid, in tokens.")
@thorough_option
@common_options
@threads_option
def parity(
    bundle: str,
    reference: str,
    data: str | None,
    encoding: str | None,
    columns: tuple[str, ...],
    text_field: str | None,
    second_field: str | None,
    label_field: str | None,
    limit: int | None,
    base: str | None,
    allow_pickle: bool,
    as_json: bool,
    quiet: bool,
    threads: int | None,
    **options: Any,  # of `gate_bundle`, by name
) -> int:
    """Check that BUNDLE answers what transformers answers with the checkpoint it came from.

    The verdict is written into the bundle's manifest, unless the checkpoint is another one (its files' digests are in
    the manifest). Exit code 1 if it fails.
    """
    from nopad.export.parity.probes import make_probes
    from nopad.export.parity.run import gate_bundle, open_reference
    from nopad.export.provenance import is_source
    from nopad.model.checkpoint.hub import resolve_checkpoint
    from nopad.model.checkpoint.source import open_source
    from nopad.runtime.bundle import open_bundle, record_parity, record_probes
    from nopad.runtime.data.labelled import read_labelled

    set_threads(threads)
    console = messages(quiet)
    opened = open_bundle(bundle)
    source = open_source(resolve_checkpoint(reference), base)
    exported_from = is_source(opened, source)
    if not exported_from:
        console.print(
            f"warning: {source.folder} is not the checkpoint that {bundle} was exported from (its files differ); they "
            "are compared, and the verdict in the manifest stays as it is",
            style="yellow",
        )
    rows = None
    if data is not None:
        file = DataSource(path=data, encoding=encoding, columns=columns)
        rows = read_labelled(
            file,
            opened.manifest,
            text_field=text_field,
            second_field=second_field,
            label_field=label_field,
            limit=limit,
        )
    with (
        status(console) as progress,
        open_reference(source, opened.manifest, allow_pickle=allow_pickle, progress=progress) as judge,
    ):
        report = gate_bundle(opened, judge, threads=threads, data=rows, progress=progress, **options)
        probes = opened.manifest.probes or (make_probes(opened, judge) if exported_from else ())
    if exported_from:
        record_probes(record_parity(opened, report["file"], report["engine"], report, report["evaluation"]), probes)
    if as_json:
        emit({"bundle": bundle, **report})
    else:
        print_report(report, None, all_lengths=True)
    return 0 if report["passed"] else 1
