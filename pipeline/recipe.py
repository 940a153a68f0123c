"""A recipe: a YAML file of steps, each the options of a command. Knows YAML and names, not what options mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nopad.runtime.config_file import nearest
from nopad.runtime.errors import InputFileError, UsageError

SET = "set"
_REFERENCE = re.compile(r"\$(?:(\$)|(\w+)|\{([^{}]*)\})")  # $$, $name, ${name of two words}
_STEP = re.compile(r"[\w-]+(?: [\w.-]+)?")
_NULL = "tag:yaml.org,2002:null"
_NO_VALUE = "{} has no value; leave the line out for the default"


@dataclass(frozen=True, kw_only=True)
class Written:
    """The value of an option as it is written: a text, or a list of texts."""

    texts: tuple[str, ...]
    is_list: bool = False
    line: int


@dataclass(frozen=True, kw_only=True)
class WrittenStep:
    """A step as it is written. Its name is its command, or that and a word of its own: `export`, `export gpu`."""

    name: str
    command: str
    line: int
    options: Mapping[str, Written]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe as it is written. Texts hold references (`$train`), for which `values` has those of `set`."""

    path: Path
    text: str
    values: Mapping[str, str]
    steps: tuple[WrittenStep, ...]

    def wrong(self, line: int, message: str) -> UsageError:
        """The error of something in this line."""
        return _wrong(self.path, line, message)


def substitute(text: str, values: Mapping[str, str]) -> str:
    """The text with its references replaced; `$$` is a dollar. Raises `KeyError` for a name without a value."""
    return _REFERENCE.sub(lambda found: "$" if found[1] else values[found[2] or found[3]], text)


def references(text: str) -> list[str]:
    """The names that a text refers to."""
    return [found[2] or found[3] for found in _REFERENCE.finditer(text) if not found[1]]


def read_recipe(path: Path, given: Mapping[str, str]) -> Recipe:
    """Read a recipe; `given` are values that replace those of its `set`.

    Raises `InputFileError` for a file that cannot be read, `UsageError` with the line for what is wrong in it.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise InputFileError(f"cannot read the recipe {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputFileError(f"the recipe {path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    loader, root = _compose(path, text)
    empty = root is None or root.tag == _NULL
    entries = {} if empty else _mapping(path, loader, root, "a recipe is a mapping of steps")
    line, written = entries.pop(SET, (0, None))
    values = _values(path, loader, written, given) if written is not None else {}
    for name in given:
        if name not in values:
            known = nearest(name, values) if values else f"the recipe has no `{SET}`"
            raise UsageError(f"--set {name}: {path} sets no such value; {known}")
    steps = tuple(_step(path, loader, name, line, node) for name, (line, node) in entries.items())
    if not steps:
        raise UsageError(f"{path} has no steps: write for example `train:` and below it the options of nopad train")
    for step in steps:
        if step.name in values:
            raise _wrong(path, step.line, f"{step.name!r} is also the name of a value in `{SET}`; rename that")
    return Recipe(path=path, text=text, values=values, steps=steps)


def _wrong(path: Path, line: int, message: str) -> UsageError:
    return UsageError(f"{path}, line {line}: {message}")


def _compose(path: Path, text: str) -> tuple[Any, Any]:
    """A loader and the document's node: nodes know their lines, and numbers in them are still as they were typed."""
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        return loader, loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _wrong(
            path, mark.line + 1 if mark else 1, f"this is not YAML: {error.problem or error.context}"
        ) from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {error}") from None
    except RecursionError:
        raise UsageError(f"{path} is nested far too deeply for a recipe") from None


def _mapping(path: Path, loader: Any, node: Any, what: str) -> dict[str, tuple[int, Any]]:
    """The keys of a mapping with their lines and nodes; anchors and merge keys work. Refuses a key that comes twice."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise _wrong(path, node.start_mark.line + 1, f"{what}, and here is none")
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise _wrong(path, line, f"{what} by their names")
        if key.value in seen:
            raise _wrong(path, line, f"{key.value!r} stands in line {seen[key.value]} already")
        seen[key.value] = line
    try:
        loader.flatten_mapping(node)
    except yaml.MarkedYAMLError as error:
        raise _wrong(path, node.start_mark.line + 1, f"{error.problem}") from None
    return {str(key.value): (key.start_mark.line + 1, value) for key, value in node.value}


def _values(path: Path, loader: Any, node: Any, given: Mapping[str, str]) -> dict[str, str]:
    """The values of `set`, each of which may refer to those before it."""
    values: dict[str, str] = {}
    for name, (line, value) in _mapping(path, loader, node, f"`{SET}` is a mapping of values").items():
        if not re.fullmatch(r"\w+", name):
            raise _wrong(path, line, f"{SET}.{name}: a name has only letters, digits and _")
        if name in given:
            values[name] = given[name]
            continue
        text = _scalar(path, value, f"{SET}.{name}")
        try:
            values[name] = substitute(text, values)
        except KeyError as error:
            raise _wrong(path, line, f"{SET}.{name} refers to ${error.args[0]}, which is not set above it") from None
    return values


def _step(path: Path, loader: Any, name: str, line: int, node: Any) -> WrittenStep:
    if not _STEP.fullmatch(name):
        raise _wrong(path, line, f"{name!r} names no step: write a command, or a command and one word (`export gpu`)")
    entries = {} if node.tag == _NULL else _mapping(path, loader, node, f"{name} is a mapping of options")
    options = {key: _option(path, value, f"{name}.{key}") for key, (_, value) in entries.items()}
    return WrittenStep(name=name, command=name.split(" ")[0], line=line, options=options)


def _option(path: Path, node: Any, name: str) -> Written:
    import yaml

    line = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        if not node.value:
            raise _wrong(path, line, _NO_VALUE.format(name))
        return Written(texts=tuple(_scalar(path, item, name) for item in node.value), is_list=True, line=line)
    return Written(texts=(_scalar(path, node, name),), line=line)


def _scalar(path: Path, node: Any, name: str) -> str:
    """What stands there, as it would on the command line: 5e-5 is not yet a number, nor `none` nothing."""
    import yaml

    line = node.start_mark.line + 1
    if not isinstance(node, yaml.ScalarNode):
        raise _wrong(path, line, f"{name} is a text or a number, as on the command line")
    if node.tag == _NULL and not node.style:
        raise _wrong(path, line, _NO_VALUE.format(name))
    if "\0" in node.value:
        raise _wrong(path, line, f"{name} holds a zero character, which no command line can")
    return str(node.value)
