"""What users import: it exists, is documented and typed, and its names do not change by accident."""

import dataclasses
import importlib
import inspect
from types import ModuleType

import pytest

import nopad.runtime
from nopad.runtime import types

MODULES = [
    "nopad.model.attention",
    "nopad.model.backbone",
    "nopad.model.checkpoint.load",
    "nopad.model.config",
    "nopad.model.encoder",
    "nopad.model.head",
    "nopad.runtime.atomic",
    "nopad.model.packing",
    "nopad.export.bundle",
    "nopad.runtime.data.labelled",
    "nopad.export.graph.onnx",
    "nopad.export.parity.accuracy",
    "nopad.export.parity.gate",
    "nopad.export.graph.precision",
    "nopad.export.reference.transformers",
    "nopad.runtime.offline.answers",
    "nopad.runtime.batching",
    "nopad.runtime.bundle",
    "nopad.runtime.engines.chain",
    "nopad.runtime.planning.cost_model",
    "nopad.runtime.data.fields",
    "nopad.runtime.data.records",
    "nopad.runtime.data.table",
    "nopad.runtime.decode",
    "nopad.runtime.explain.explaining",
    "nopad.runtime.explain.page",
    "nopad.runtime.explain.perturbed",
    "nopad.runtime.explain.shapley",
    "nopad.runtime.explain.units",
    "nopad.runtime.errors",
    "nopad.runtime.inference",
    "nopad.runtime.offline.resumable",
    "nopad.runtime.planning.lengths",
    "nopad.runtime.manifest",
    "nopad.runtime.planning.search",
    "nopad.runtime.answering",
    "nopad.runtime.model",
    "nopad.runtime.predictor",
    "nopad.runtime.scheduler.attempt",
    "nopad.runtime.scheduler.events",
    "nopad.runtime.scheduler.queue",
    "nopad.runtime.scheduler.request",
    "nopad.runtime.scheduler.scheduler",
    "nopad.runtime.scheduler.worker",
    "nopad.runtime.profiles",
    "nopad.runtime.engines.selection",
    "nopad.runtime.tokenizer",
    "nopad.runtime.types",
]


def public(module: ModuleType) -> list[tuple[str, object]]:
    return [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]


def test_the_names_of_the_runtime() -> None:
    assert set(nopad.runtime.__all__) == {
        "Attribution",
        "Embedding",
        "Entity",
        "Explanation",
        "Failure",
        "MaskFill",
        "Model",
        "Prediction",
        "Ranked",
        "Tagging",
        "TokenEmbeddings",
        "load",
    }
    assert all(hasattr(nopad.runtime, name) for name in nopad.runtime.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented_and_typed(name: str) -> None:
    module = importlib.import_module(name)
    for attribute, value in public(module):
        assert inspect.getdoc(value), f"{name}.{attribute} has no docstring"
        if inspect.isfunction(value):
            untyped = [
                parameter
                for parameter in inspect.signature(value).parameters.values()
                if parameter.annotation is inspect.Parameter.empty
            ]
            assert not untyped, f"{name}.{attribute}: {untyped}"
            assert inspect.signature(value).return_annotation is not inspect.Signature.empty, f"{name}.{attribute}"


@pytest.mark.parametrize("kind", [value for _, value in public(types) if dataclasses.is_dataclass(value)])
def test_records_are_frozen_and_by_keyword(kind: type) -> None:
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(field.kw_only for field in dataclasses.fields(kind))


def test_load_says_what_it_raises() -> None:
    doc = inspect.getdoc(nopad.runtime.load) or ""
    for word in ("BundleError", "UsageError", "EnvironmentProblem", "truncation", "token_budget", "allow_unverified"):
        assert word in doc
