"""The page of all commands, made from the commands themselves: a hook of mkdocs.yml."""

from __future__ import annotations

from collections.abc import Iterator

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from nopad.runtime.cli import COMMANDS, cli

WIDTH = 100


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add reference/commands.md."""
    files.append(File.generated(config, "reference/commands.md", content="\n".join(_page())))
    return files


def _page() -> Iterator[str]:
    yield "# Commands\n"
    top = click.Context(cli, info_name="nopad", terminal_width=WIDTH, max_content_width=WIDTH)
    yield from _help(cli, top)
    for name in COMMANDS:
        command = cli.get_command(top, name)
        yield f"## nopad {name}\n"
        yield from _with_parts(command, click.Context(command, info_name=name, parent=top))


def _with_parts(command: click.Command, context: click.Context) -> Iterator[str]:
    yield from _help(command, context)
    if isinstance(command, click.Group):
        for part in command.list_commands(context):
            own = command.get_command(context, part)
            if own is not None and not own.hidden:
                yield f"### {context.command_path} {part}\n"
                yield from _with_parts(own, click.Context(own, info_name=part, parent=context))


def _help(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"```text\n{command.get_help(context)}\n```\n"
