"""The `nopad` command: a lazy root group. A command's module is imported when it runs, so `--help` is instant.

Exit codes: 0 ok, 1 a check failed, 2 usage, 3 bad input, 4 environment, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import io
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from nopad.model.errors import NopadError
from nopad.model.packages import extra_of, install_hint, package_of
from nopad.runtime.errors import Terminated

# name -> folder and short help: `nopad X` is the function X of FOLDER/commands/X.py
COMMANDS: dict[str, tuple[str, str]] = {
    "train": (
        "training",
        "Fine-tune a checkpoint (or train from scratch) on labelled texts.",
    ),
    "export": ("export", "Export a checkpoint to a verified bundle."),
    "parity": ("export", "Check that a bundle answers what transformers answers."),
    "calibrate": ("runtime", "Make a bundle's scores true probabilities, by labelled texts."),
    "plan": ("runtime", "Plan engine profiles from the lengths of real texts."),
    "tune": ("runtime", "Measure which engine answers your texts fastest here."),
    "predict": ("runtime", "Answer texts, or a file of them."),
    "explain": ("runtime", "Mark the words that speak for a text's label, or against it."),
    "serve": ("runtime", "Serve bundles over HTTP, to clients of many libraries."),
    "analyze": ("analysis", "Show where a bundle errs on labelled texts, as a page; compare two."),
    "bench": ("bench", "Measure a bundle beside its competitors; compare two results."),
    "run": ("pipeline", "Run a recipe of these commands; what is done already is kept."),
    "inspect": ("runtime", "Show what a bundle holds and how it was verified."),
    "doctor": ("runtime", "Show what this machine can train, export and run."),
    "demo": (
        "export",
        "Export, verify and run the embedded model; compare with transformers.",
    ),
}

EPILOG = (
    "Exit codes: 0 ok, 1 a check failed, 2 usage, 3 bad input, 4 environment (package, memory, disk), 130 interrupted, "
    "143 terminated."
)


class LazyGroup(click.Group):
    """Lists its commands by name; imports a command only to run it or to show its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Command names, in the order in which a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command and return it; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        folder, _ = COMMANDS[cmd_name]
        module = importlib.import_module(f"nopad.{folder}.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        for option in command.params:  # click would derive the variables from parameter names, which users never see
            if isinstance(option, click.Option):
                long = max(option.opts, key=len).lstrip("-")
                variable = f"NOPAD_{cmd_name}_{long}".replace("-", "_").upper()
                # An option may have another variable of its own; the command's takes precedence.
                if not isinstance(option.envvar, list):
                    option.envvar = variable if option.envvar in (None, variable) else [variable, str(option.envvar)]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(importlib.metadata.version("nopad"), prog_name="nopad")
def cli() -> None:
    """Packed ModernBERT and BERT encoders, from fine-tuning to verified, torch-free bundles.

    Every option can be set as NOPAD_<COMMAND>_<OPTION> in the environment.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run a command and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)  # containers are stopped by it
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # characters that the terminal cannot show must not fail
    sys.exit(run(arguments))


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Every expected failure becomes one line on stderr."""
    try:
        code = cli.main(args=arguments, prog_name="nopad", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort) as error:
        terminated = isinstance(error, Terminated) or isinstance(error.__cause__, Terminated)
        click.echo("nopad: terminated" if terminated else "nopad: interrupted", err=True)
        return 143 if terminated else 130
    except NopadError as error:
        click.echo(f"nopad: {error}", err=True)
        return error.exit_code
    except ModuleNotFoundError as error:
        package = package_of(error.name or "")
        extra = extra_of(package, command=next(iter(sys.argv[1:] if arguments is None else arguments), ""))
        if extra is None:
            raise
        click.echo(f"nopad: this needs the package {package}: {install_hint(extra)}", err=True)
        return 4
    except MemoryError:
        click.echo("nopad: out of memory; use a smaller model, --token-budget or batch size", err=True)
        return 4
    except SystemExit:  # without standalone mode, click exits only when whoever reads our output has gone (| head)
        return 0
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = "the disk is full" if full else (error.strerror or str(error) or type(error).__name__)
        place = f" ({error.filename})" if error.filename else ""
        todo = "; free some space, or name another --output" if full else ""
        click.echo(f"nopad: {what}{place}{todo}", err=True)
        return 4 if full else 3


if __name__ == "__main__":
    main()
