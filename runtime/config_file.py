"""A command's options from a TOML file, and back: click's defaults, below the command line and the environment.

Knows click, and nothing of what the options mean.
"""

from __future__ import annotations

import difflib
import json
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from nopad.runtime.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
NOT_IN_FILES = ("config", "print-config", "help")
MODELS = "models"


def config_option(command: F) -> F:
    """`--config FILE`. Its value is what the table [models] holds, as arguments: ("NAME=FOLDER", ...)."""
    option = click.option(
        "--config",
        "configured",
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,  # so that it is read before the other options look for their defaults
        callback=_take,
        help="TOML file of options by their names, and of bundles by name in a table [models].",
    )
    return option(command)


def _take(context: click.Context, option: click.Parameter, path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    given, models = read_config(path, context.command)
    context.default_map = {**(context.default_map or {}), **given}
    return tuple(f"{name}={folder}" for name, folder in models.items())


def read_config(path: Path, command: click.Command) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters of the command by their names in the code, and models; paths in the file are relative to its folder.

    Raises `UsageError`: a file that cannot be read, an unknown key, a value of the wrong kind. Warns on stderr of
    secrets in a file that everybody may read.
    """
    try:
        found = tomllib.loads(path.read_text("utf-8"))
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"cannot read --config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is not TOML: {error}") from None
    folder, options = path.resolve().parent, options_of(command)
    models = found.pop(MODELS, {})
    if not isinstance(models, dict) or not all(isinstance(value, str) for value in models.values()):
        raise UsageError(f"{path}: [{MODELS}] is a table of names and bundle folders")
    given: dict[str, Any] = {}
    for key, value in found.items():
        option = options.get(key.replace("_", "-"))
        if option is None:
            raise UsageError(f"{path}: there is no option {key!r}; {nearest(key, [*options, MODELS])}")
        _check(path, key, value, option)
        if isinstance(option.type, click.Path):
            value = str(folder / value)
        given[option.name or ""] = [value] if option.multiple and isinstance(value, str) else value
    if mode & stat.S_IROTH and any(_secret(options[key.replace("_", "-")]) for key in found):
        click.echo(f"nopad: {path} holds keys, and everybody on this machine may read it: chmod o-r {path}", err=True)
    return given, {name: str(folder / value) for name, value in models.items()}


def as_toml(context: click.Context, models: Mapping[str, Path | None]) -> str:
    """The options in force, as a file for `--config`; keys are not shown, options without a value are left out."""
    lines = []
    for name, option in options_of(context.command).items():
        value = context.params.get(option.name or "")
        if value is None or value == ():
            continue
        if _secret(option):
            lines.append(f"# {name} = ...")
        elif isinstance(value, bool | int | float):
            lines.append(f"{name} = {json.dumps(value)}")
        else:
            lines.append(f"{name} = {json.dumps(value, default=_text, ensure_ascii=False)}")
    named = [f"{json.dumps(name)} = {json.dumps(str(path.resolve()))}" for name, path in models.items() if path]
    return "\n".join([*lines, *(["", f"[{MODELS}]", *named] if named else [])])


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name that nobody knows: the one that may have been meant."""
    near = difflib.get_close_matches(name.replace("_", "-"), list(known), 1, 0.0)
    return f"the nearest is {near[0]!r}"


def options_of(command: click.Command) -> dict[str, click.Option]:
    """The options that a file may set, by their names on the command line, without the dashes."""
    options = [option for option in command.params if isinstance(option, click.Option)]
    named = {max(option.opts, key=len).lstrip("-"): option for option in options}
    return {name: option for name, option in named.items() if name not in NOT_IN_FILES}


def _secret(option: click.Option) -> bool:
    return max(option.opts, key=len).endswith("-key") and not isinstance(option.type, click.Path)


def _check(path: Path, key: str, value: object, option: click.Option) -> None:
    """Raises `UsageError` for what click would make something else of: 1 for true, "[1]" for a list."""
    if option.is_flag:
        wanted, good = "true or false", isinstance(value, bool)
    elif option.multiple:
        good = isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
        wanted = "a text, or a list of texts"
    elif isinstance(option.type, click.types.IntParamType):
        wanted, good = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(option.type, click.types.FloatParamType):
        wanted, good = "a number", isinstance(value, int | float) and not isinstance(value, bool)
    else:
        wanted, good = "a text", isinstance(value, str)
    if not good:
        raise UsageError(f"{path}: {key} is {wanted}, not {value!r}")


def _text(value: object) -> str:
    return str(value)
