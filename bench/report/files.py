"""Reports as files: writes and reads `bench.json`, which has derived figures beside the raw times.

Derived values (`derived` of a cell) are written for readers without nopad, and computed again when the file is
read. Unknown keys of a report are kept.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from nopad.bench.report.derived import Figures, tabulate
from nopad.bench.report.intervals import wide
from nopad.bench.schema import SCHEMA_VERSION, Cell, Noise, Peak, Report, Status, Subject, Workload
from nopad.runtime.atomic import write_file
from nopad.runtime.errors import InputFileError, NewerVersionError, OutputError

JSON, MARKDOWN, HTML = "bench.json", "bench.md", "bench.html"


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values, derived ones included."""
    raw = dataclasses.asdict(report)
    raw.update(raw.pop("extra"))
    figures = tabulate(report).figures
    for cell in raw["cells"]:
        derived = figures.get((cell["subject"], cell["workload"]))
        cell["derived"] = None if derived is None else _derived(derived)
    return raw


def _derived(figures: Figures) -> dict[str, Any]:
    raw = dataclasses.asdict(figures)
    raw["conclusive"] = not wide(figures.ratio or figures.seconds)
    return {
        name: [end if math.isfinite(end) else None for end in value] if isinstance(value, list | tuple) else value
        for name, value in raw.items()
    }


def check_folder(folder: Path) -> None:
    """Refuse, before the work, an output whose `bench.json` is not ours. Raises `OutputError`."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder")
    if (folder / JSON).exists():
        try:
            read_report(folder / JSON)
        except NewerVersionError:
            raise
        except InputFileError as error:
            raise OutputError(f"{folder / JSON} is left alone ({error}); name another output") from None
    folder.mkdir(parents=True, exist_ok=True)


def write_json(report: Report, folder: Path) -> None:
    """Write `bench.json`, whole or not at all."""
    data = json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False)
    write_file(folder / JSON, data.encode("utf-8") + b"\n")


def read_report(path: Path) -> Report:
    """Read a report, given as its file or its folder.

    Raises `NewerVersionError` for a schema of a later nopad, `InputFileError` for any other file that is not a report.
    """
    path = path / JSON if path.is_dir() else path
    try:
        raw = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputFileError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{path} is damaged ({error}); run nopad bench again") from None
    if not isinstance(raw, dict) or type(raw.get("schema_version")) is not int:
        raise InputFileError(f"{path} is not a report of nopad bench: it has no schema_version")
    version = raw["schema_version"]
    if version > SCHEMA_VERSION:
        raise NewerVersionError(
            f"{path} has schema_version {version}, this nopad reads up to {SCHEMA_VERSION}: upgrade nopad"
        )
    if version < 1:
        raise InputFileError(f"{path} has schema_version {version}, which never existed; run nopad bench again")
    try:
        return _report(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputFileError(f"{path} is damaged ({type(error).__name__}: {error}); run nopad bench again") from None


def _report(raw: Mapping[str, Any]) -> Report:
    names = {field.name for field in dataclasses.fields(Report)} - {"extra"}
    values = {name: value for name, value in raw.items() if name in names}
    values["subjects"] = tuple(_record(Subject, row) for row in raw["subjects"])
    values["workloads"] = tuple(_record(Workload, _with_limits(row)) for row in raw["workloads"])
    values["cells"] = tuple(_record(Cell, row) for row in raw["cells"])
    values["noise"] = _record(Noise, raw["noise"])
    values["peaks"] = tuple(_record(Peak, row) for row in raw.get("peaks") or ())
    values["forecasts"] = tuple(map(dict, raw.get("forecasts") or ()))
    values["extra"] = {name: value for name, value in raw.items() if name not in names}
    for name in ("command", "created"):
        if not isinstance(values[name], str):
            raise TypeError(f"{name} is {values[name]!r}")
    if type(values["threads"]) is not int or not isinstance(values["complete"], bool):
        raise TypeError("threads or complete has the wrong type")
    report = Report(**values)
    subjects, workloads = ({record.name for record in group} for group in (report.subjects, report.workloads))
    for cell in report.cells:
        if cell.subject not in subjects or cell.workload not in workloads:
            raise ValueError(f"a cell of {cell.subject} on {cell.workload}, which the report does not have")
    return report


def _with_limits(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A workload of a report from before there were limits for each precision: it had the one of fp32."""
    old = raw.get("limit_tokens_per_second")
    return raw if old is None else {"limits": {"fp32": old}, **raw}


def _record(kind: Any, raw: Any) -> Any:
    """One of the schema's records from JSON; unknown keys are dropped, numbers are checked."""
    hints = get_type_hints(kind)
    values = {}
    for name, value in raw.items():
        if name not in hints:
            continue
        if isinstance(value, dict if get_origin(hints[name]) is Mapping else list):
            numbers = value.values() if isinstance(value, dict) else value
            if not all(type(item) in (int, float) and math.isfinite(item) for item in numbers):
                raise TypeError(f"{name} holds something that is not a number")
            value = value if isinstance(value, dict) else tuple(value)
        elif not _fits(value, hints[name]):
            raise TypeError(f"{name} is {value!r}")
        values[name] = value
    record = kind(**values)
    if kind is Cell and (len(record.seconds) != len(record.rounds) or any(second <= 0 for second in record.seconds)):
        raise ValueError(f"the times of {record.subject} on {record.workload} are damaged")
    return record


def _fits(value: Any, hint: Any) -> bool:
    if hint == Status or get_args(hint) and all(isinstance(choice, str) for choice in get_args(hint)):
        return value in get_args(hint)
    kinds = get_args(hint) or (hint,)
    if value is None:
        return type(None) in kinds
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int):
        return int in kinds or float in kinds
    return isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type)))
