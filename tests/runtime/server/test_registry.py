"""Names of served models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nopad.runtime.errors import UsageError
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.registry import Models, bundles_by_name, prepare
from nopad.runtime.tokenizer import TextEncoder


def test_a_model_has_the_name_it_is_given_or_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundles_by_name([]) == {"default": None}
    assert bundles_by_name(["a/bundle/", "search=b/bundle"]) == {
        "bundle": Path("a/bundle/"),
        "search": Path("b/bundle"),
    }
    odd = tmp_path / "lr=3"
    odd.mkdir()
    assert bundles_by_name([str(odd)]) == {"lr=3": odd}  # a folder that is there is no NAME=FOLDER
    monkeypatch.chdir(odd)
    assert bundles_by_name(["."]) == {"lr=3": Path(".")}
    for twice in (["a/b", "c/b"], ["x=a", "x=b"], ["=a"]):
        with pytest.raises(UsageError, match="name them yourself"):
            bundles_by_name(twice)


def test_nothing_is_found_before_it_is_loaded() -> None:
    with pytest.raises(Fault, match="still loading"):
        Models().find(None)


def test_if_one_cannot_be_loaded_none_is_served(tmp_path: Path) -> None:
    models = Models()
    with pytest.raises(Exception, match="no bundle at"):
        models.open({"default": None, "other": tmp_path / "nowhere"}, threads=1)
    assert len(models) == 0


def test_a_served_bundle_opens_its_tokenizer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    inner = TextEncoder.__init__

    def counted(self: TextEncoder, path: Path, *args: Any, **options: Any) -> None:
        opened.append(path.name)
        inner(self, path, *args, **options)

    monkeypatch.setattr(TextEncoder, "__init__", counted)
    prepare("default", None, {"threads": 1}).model.close()
    assert opened == ["tokenizer.json"]
