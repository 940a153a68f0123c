"""Steps: what a recipe's commands take from each other, and their options held to what the commands declare.

A step's options are those of `nopad COMMAND --help`, read from click; what is wired by itself is in `KINDS`.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from nopad.pipeline.recipe import Recipe, Written, WrittenStep, references, substitute
from nopad.runtime.cli import cli
from nopad.runtime.config_file import nearest, options_of
from nopad.runtime.data.table import DataSource
from nopad.runtime.errors import InputFileError

OUTPUT = "output"
WRITTEN = (OUTPUT, "triton", "timing-cache")  # options that name what a command writes
OURS = ("json", "quiet", "resume")  # options that `nopad run` gives itself
FILE = "FILE"  # the metavar of options that name a file of texts


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A command as a step. Wired by itself: what only one earlier step can give, and where to write."""

    makes: str = ""  # what its output is to later steps
    suffix: str | None = None  # of its output, "" for a folder; None: the command has no --output
    takes: Mapping[str, str] = field(default_factory=dict)  # option or argument -> what it is
    changes: str = ""  # which of them is changed in its place
    judges: bool = False  # it changes what is said of a bundle, not how that answers
    saved: tuple[str, ...] = ()  # where an interrupted run leaves what --resume goes on from, beside its output


KINDS: Mapping[str, Kind] = {
    "train": Kind(
        makes="checkpoint", suffix="", saved=("{}.training/checkpoint-*/trainer_state.json", "{}.sweep/study.db")
    ),
    "plan": Kind(makes="profiles", suffix=".json", takes={"model": "checkpoint"}),
    "export": Kind(makes="bundle", suffix="", takes={"checkpoint": "checkpoint"}),
    "calibrate": Kind(suffix=".svg", takes={"bundle": "bundle"}, changes="bundle"),
    "tune": Kind(takes={"bundle": "bundle"}, changes="bundle"),
    "parity": Kind(takes={"bundle": "bundle", "reference": "checkpoint"}, changes="bundle", judges=True),
    "bench": Kind(suffix="", takes={"bundle": "bundle", "reference": "checkpoint"}),
    "analyze": Kind(suffix=".html", takes={"bundle": "bundle"}),
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that can be run."""

    name: str
    command: str
    line: int
    texts: Mapping[str, tuple[str, ...]]  # of its options as they are written, without the output that is wired
    values: Mapping[str, str]  # of the recipe, for the references in the texts
    output: Path | None
    reads: tuple[str, ...]  # earlier steps whose outputs it takes, each once
    changes: str | None  # the one of those whose output it changes in its place
    environment: Mapping[str, str]  # options that variables set (NOPAD_TRAIN_EPOCHS)
    files: Mapping[str, Path]  # files and folders that options name, by how they are written

    def options(self, outputs: Mapping[str, str] | None = None) -> dict[str, tuple[str, ...]]:
        """Every option's texts, with `outputs` in the places of earlier steps' names, or with `$name` still there."""
        values = {**(outputs or {name: f"${name}" for name in self.reads}), **self.values}
        return {name: tuple(substitute(text, values) for text in texts) for name, texts in self.texts.items()}

    def arguments(self, outputs: Mapping[str, str]) -> list[str]:
        """The command line after `nopad`, with these outputs of earlier steps."""
        params, options = parameters(self.command), self.options(outputs)
        # Arguments in the command's order, options in the recipe's.
        arguments = [name for name, param in params.items() if isinstance(param, click.Argument)]
        positional = [text for name in arguments for text in options.pop(name, ())]
        named = [_spelled(params[name], name, text) for name, texts in options.items() for text in texts]
        if self.output is not None and OUTPUT not in self.texts:
            named.append([f"--{OUTPUT}={self.output}"])
        return [self.command, *itertools.chain(*named), *(["--", *positional] if positional else [])]


def compile_steps(recipe: Recipe, folder: Path) -> tuple[Step, ...]:
    """The steps of a recipe, whose outputs are below `folder`.

    Raises `UsageError` with the line for what no command knows, `InputFileError` for a file that is not there.
    """
    steps: list[Step] = []
    for written in recipe.steps:
        steps.append(_compile(recipe, written, steps, folder))
        twin = next((step for step in steps[:-1] if step.output and step.output == steps[-1].output), None)
        if twin is not None:
            raise recipe.wrong(written.line, f"{written.name} would write where {twin.name} does: {twin.output}")
    return tuple(steps)


def parameters(command: str) -> dict[str, click.Parameter]:
    """Options and arguments of a command, by the names that a recipe has for them."""
    found = cli.get_command(click.Context(cli), command)
    assert found is not None, "of KINDS, and a command"
    arguments = {one.name: one for one in found.params if isinstance(one, click.Argument)}
    return {**arguments, **options_of(found)}


def _compile(recipe: Recipe, written: WrittenStep, earlier: Sequence[Step], folder: Path) -> Step:
    if written.command not in KINDS:
        raise recipe.wrong(written.line, f"no step is called {written.command!r}; {nearest(written.command, KINDS)}")
    kind, params = KINDS[written.command], parameters(written.command)
    options = {**dict(_named(recipe, written, params)), **_wired(recipe, written, params, earlier)}
    base = recipe.path.resolve().parent
    known = {step.name: step for step in earlier if step.output is not None}
    for option in options.values():
        _check_references(recipe, written, option, known)
    texts = {name: option.texts for name, option in options.items()}
    reads = [name for every in texts.values() for text in every for name in references(text) if name in known]
    output = None
    if kind.suffix is not None:
        output = folder / f"{written.name.replace(' ', '-')}{kind.suffix}"
        if OUTPUT in texts:
            output = base / substitute(texts[OUTPUT][0], {**recipe.values, **{n: str(known[n].output) for n in known}})
    files: dict[str, Path] = {}
    for name, option in options.items():
        if not any(one in known for text in option.texts for one in references(text)):
            final = [substitute(text, recipe.values) for text in option.texts]
            _check(recipe, f"{written.name}.{name}", option.line, params[name], final, base)
            files |= _files(name, params[name], final, base)
    context = click.Context(click.Command(written.command))
    variables = {name: param.resolve_envvar_value(context) for name, param in params.items() if name not in options}
    for name, value in variables.items():
        if value is not None:
            several = params[name].multiple
            files |= _files(
                name, params[name], params[name].type.split_envvar_value(value) if several else [value], base
            )
    return Step(
        name=written.name,
        command=written.command,
        line=written.line,
        texts=texts,
        values=recipe.values,
        output=output,
        reads=tuple(dict.fromkeys(reads)),
        changes=_changed(recipe, written, texts, known),
        environment={name: value for name, value in variables.items() if value is not None and name not in OURS},
        files=files,
    )


def _named(recipe: Recipe, step: WrittenStep, params: Mapping[str, click.Parameter]) -> Iterator[tuple[str, Written]]:
    """The options that the recipe writes, under their names on the command line."""
    for key, option in step.options.items():
        name = key.replace("_", "-")
        if name in OURS:
            raise recipe.wrong(option.line, f"{step.name}.{key}: nopad run gives --{name} itself; leave it out")
        if name not in params:
            raise recipe.wrong(option.line, f"nopad {step.command} has no option {key!r}; {nearest(name, params)}")
        if option.is_list and not params[name].multiple:
            raise recipe.wrong(option.line, f"{step.name}.{key} is one value; several are written as on the command "
                               "line, in one text")  # fmt: skip
        yield name, option


def _wired(
    recipe: Recipe, step: WrittenStep, params: Mapping[str, click.Parameter], earlier: Sequence[Step]
) -> dict[str, Written]:
    """What the recipe does not name and one earlier step makes. Refuses to choose among several, or to go without."""
    wired: dict[str, Written] = {}
    kind = KINDS[step.command]
    given = {key.replace("_", "-") for key in step.options}
    for name, thing in kind.takes.items():
        makers = [f"${{{one.name}}}" for one in earlier if KINDS[one.command].makes == thing]
        if name in given:
            continue
        if len(makers) > 1:
            raise recipe.wrong(step.line, f"{step.name} needs a {thing}: say which, as `{name}:`, of "
                               f"{', '.join(makers)}")  # fmt: skip
        if makers:
            wired[name] = Written(texts=(makers[0],), line=step.line)
        elif params[name].required or name == kind.changes:
            raise recipe.wrong(step.line, f"{step.name} needs a {thing}, and no step above makes one: name it as "
                               f"`{name}:`")  # fmt: skip
    for name, param in params.items():
        if param.required and name not in given and name not in wired and name != OUTPUT:
            raise recipe.wrong(step.line, f"{step.name} needs {name!r}: nopad {step.command} --help says what it is")
    return wired


def _check_references(recipe: Recipe, step: WrittenStep, option: Written, known: Mapping[str, Step]) -> None:
    names = [*recipe.values, *known]
    for name in (name for text in option.texts for name in references(text)):
        if name not in names:
            near = nearest(name, names) if names else "there is none"
            raise recipe.wrong(option.line, f"{step.name}: ${name} is no value and no earlier step; {near}")


def _changed(
    recipe: Recipe, step: WrittenStep, texts: Mapping[str, tuple[str, ...]], known: Mapping[str, Step]
) -> str | None:
    option = KINDS[step.command].changes
    if not option:
        return None
    name, *others = references(texts[option][0]) or [""]
    whole = not others and texts[option][0] in (f"${name}", f"${{{name}}}")
    if not whole or name not in known or KINDS[known[name].command].makes != KINDS[step.command].takes[option]:
        raise recipe.wrong(
            step.line,
            f"{step.name} changes its {option}, and a recipe changes only what it has made: "
            f"name a step that makes one, as `{option}: $export`",
        )
    return name


def _check(recipe: Recipe, name: str, line: int, param: click.Parameter, texts: Sequence[str], base: Path) -> None:
    """The value as the command will check it, and that files are there. Paths are relative to the recipe's folder."""
    values = [str(base / text) if isinstance(param.type, click.Path) else text for text in texts]
    context = click.Context(click.Command(name))
    try:
        if getattr(param, "is_flag", False):
            click.BOOL.convert(values[0], param, context)
        else:
            param.process_value(context, values if param.multiple else values[0])
    except click.UsageError as error:
        raise recipe.wrong(line, f"{name}: {error.message}") from None
    if param.metavar != FILE:
        return
    for text in texts:
        if text == "-":
            raise recipe.wrong(line, f"{name}: a recipe reads no stdin; name a file")
        if not os.path.exists(_place(base, text)):
            raise InputFileError(f"{recipe.path}, line {line}: {name}: there is no file {base / text}")


def _files(name: str, param: click.Parameter, texts: Sequence[str], base: Path) -> dict[str, Path]:
    """What these texts name of files and folders that are read: whole, one of several between commas, or a pattern."""
    if getattr(param, "is_flag", False) or name in WRITTEN:
        return {}
    if not isinstance(param.type, click.Path | click.types.StringParamType):
        return {}
    names = [part for text in texts for part in (text, *text.split(",")) if part.strip()]
    found = {part: Path(place) for part in names if os.path.exists(place := _place(base, part))}
    if isinstance(param.type, click.Path):  # of these, training reads patterns
        patterns = [text for text in texts if text not in found and glob.has_magic(text)]
        found |= {file: base / file for text in patterns for file in glob.glob(text, root_dir=base, recursive=True)}
    return found


def _place(base: Path, text: str) -> str:
    """The path without the name of a split or sheet behind it."""
    return DataSource(path=str(base / text)).location()[0]


def _spelled(param: click.Parameter, name: str, text: str) -> list[str]:
    """An option as it is typed; a flag's value becomes --bf16, --no-bf16 or, where there is nothing to say, nothing."""
    if not isinstance(param, click.Option) or not param.is_flag:
        return [f"--{name}={text}"]
    return [f"--{name}"] if click.BOOL.convert(text, param, None) else list(param.secondary_opts[:1])
