"""The recipes in recipes/: each is one that this nopad runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from repository import ROOT

from nopad.runtime.cli import run

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_one_that_can_be_run(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for line in recipe.read_text("utf-8").splitlines():  # the files that it reads: all are named `$data/NAME`
        if "$data/" in line:
            (data / line.rpartition("$data/")[2].split()[0]).write_text("{}\n")
    assert run(["run", str(recipe), "--set", f"data={data}", "--output", str(out), "--dry-run", "--json"]) == 0
    outcomes = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(outcomes) >= 4 and {one["why"] for one in outcomes} == {"has not run yet"}
    assert outcomes[0]["command"] == "train" and list(tmp_path.iterdir()) == [data]


def test_every_recipe_says_how_it_is_run() -> None:
    assert RECIPES
    for recipe in RECIPES:
        assert f"nopad run recipes/{recipe.name} --set data=" in recipe.read_text("utf-8")
