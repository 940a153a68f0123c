"""What of a recipe this machine cannot do, said before anything runs instead of after hours of training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import click

from nopad.pipeline.steps import Step
from nopad.runtime.cli import cli
from nopad.runtime.errors import EnvironmentProblem

_OF_TARGETS = ("target", "precision", "arch")


def check_machine(steps: Sequence[Step], will_run: Callable[[], Collection[str]]) -> None:
    """Refuse targets that cannot be exported here, of steps that will run. Raises `EnvironmentProblem`.

    `will_run` names these steps; it is asked only where a target is missed, since it reads all that they depend on.
    """
    for step in steps:
        if step.command == "export":
            try:
                _check_targets(step)
            except EnvironmentProblem as error:
                if step.name in will_run():
                    raise EnvironmentProblem(f"step {step.name} (line {step.line} of the recipe): {error}") from None


def _check_targets(step: Step) -> None:
    from nopad.export.targets import plan_jobs
    from nopad.runtime.engines.gpus import gpu_at_hand

    given = {name: texts[0] for name, texts in step.options().items()}
    words = [f"--{name}={text}" for name, text in (dict(step.environment) | given).items() if name in _OF_TARGETS]
    command = cli.get_command(click.Context(cli), step.command)
    assert command is not None, "one of its commands"
    values = command.make_context(step.command, [*words, "checkpoint"]).params
    archs = [name.strip().lower() for name in (values["arch"] or "").split(",") if name.strip()]
    plan_jobs(values["target"], values["precision"], archs, sm=gpu_at_hand)
