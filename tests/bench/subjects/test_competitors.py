"""Which competitors a run has, and which it refuses."""

import click
import pytest

from nopad.bench.subjects.competitors import BERT_IN, COMPETITORS, NAMES, check_against, default_against
from nopad.bench.subjects.runners import RUNNERS
from nopad.model.packages import COMPETITOR_NEEDS
from nopad.runtime import cli
from nopad.runtime.errors import UsageError


def test_a_run_that_names_none_has_those_of_its_task() -> None:
    classes = default_against(embeddings=False, library_folder=False)
    assert {"hf-sdpa", "hf-sdpa-bf16", "optimum", "openvino", "openvino-default", "optimum-intel"} <= set(classes)
    assert not {"st", "fastembed", "bert", "hf-compile", "hf-zentorch-bf16"} & set(classes)
    vectors = default_against(embeddings=True, library_folder=True)
    assert {"hf-sdpa", "st", "st-bf16", "st-onnx", "st-openvino", "fastembed"} <= set(vectors)
    assert not {"optimum", "openvino", "optimum-intel"} & set(vectors)
    assert "st" not in default_against(embeddings=True, library_folder=False)


def test_what_a_bundle_rules_out_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="optimum is not for bundles of embeddings"):
        check_against(["hf-sdpa", "optimum"], embeddings=True)
    with pytest.raises(UsageError, match=r"st-onnx needs a --reference .*modules\.json"):
        check_against(["st-onnx"], embeddings=True, library_folder=False)
    check_against(["st-onnx", "hf-compile-bf16"], embeddings=True)
    check_against(["bert"])


def test_every_competitor_has_a_runner_and_a_need_and_stands_in_the_help() -> None:
    command = cli.cli.get_command(click.Context(cli.cli), "bench")
    (text,) = [option.help for option in command.params if option.name == "against"]  # type: ignore[union-attr]
    assert all(name in text for name in NAMES)
    for name, competitor in COMPETITORS.items():
        assert competitor.runner in RUNNERS and competitor.need in COMPETITOR_NEEDS, name
    assert set(BERT_IN) < set(COMPETITORS)
