"""The packages that nopad imports only where it needs them, and the extras that bring them.

`tests/model/test_packages.py` compares the tables with the extras in pyproject.toml. Imports no package.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package; `name` is pip's."""

    name: str
    extras: tuple[str, ...] = ()  # suggested where it is missing, the usual extra first; () for nopad's dependencies
    purpose: str = ""  # shown by `nopad doctor`, which lists the packages that have one


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a command, an engine or a competitor needs. Without `modules` it needs nothing, and `extra` is ignored."""

    modules: tuple[str, ...]
    extra: str  # brings all of them


# By the module that is imported, in the order in which `nopad doctor` lists them.
PACKAGES: Mapping[str, Package] = {
    "numpy": Package(name="numpy", purpose="runtime"),
    "tokenizers": Package(name="tokenizers", purpose="runtime"),
    "onnxruntime": Package(name="onnxruntime", extras=("cpu",), purpose="runtime: engine onnx-cpu"),
    "torch": Package(name="torch", extras=("export", "train"), purpose="train, export"),
    "transformers": Package(name="transformers", extras=("export", "train"), purpose="train, export, parity"),
    "safetensors": Package(name="safetensors", extras=("export", "train"), purpose="train, export"),
    "onnx": Package(name="onnx", extras=("export",), purpose="export"),
    "onnxscript": Package(name="onnxscript", extras=("export",), purpose="export"),
    "accelerate": Package(name="accelerate", extras=("train",), purpose="train"),
    "peft": Package(name="peft", extras=("lora",), purpose="train --lora"),
    "optuna": Package(name="optuna", extras=("sweep",), purpose="train --trials"),
    "datasets": Package(name="datasets", extras=("train",), purpose="train"),
    "sklearn": Package(name="scikit-learn", extras=("train", "sklearn"), purpose="train"),
    "scipy": Package(name="scipy", extras=("train",), purpose="train"),
    "wandb": Package(name="wandb", extras=("wandb",)),
    "tensorboard": Package(name="tensorboard", extras=("tensorboard",)),
    "mlflow": Package(name="mlflow-skinny", extras=("mlflow",)),
    "trackio": Package(name="trackio", extras=("trackio",)),
    "yaml": Package(name="pyyaml", extras=("export", "train"), purpose="run"),
    "optimum": Package(name="optimum-onnx", extras=("bench", "optimum"), purpose="export --exporter optimum"),
    "optimum.intel": Package(name="optimum-intel", extras=("bench",)),
    "openvino": Package(name="openvino", extras=("openvino", "bench"), purpose="runtime: engine openvino"),
    "sentence_transformers": Package(name="sentence-transformers", extras=("bench",)),
    "fastembed": Package(name="fastembed", extras=("bench",)),
    "zentorch": Package(name="zentorch", extras=("zentorch",)),
    "tensorrt": Package(name="tensorrt", extras=("tensorrt",)),
    "tensorrt_rtx": Package(name="tensorrt_rtx", extras=("tensorrt-rtx",)),
    "cuda": Package(name="cuda-python", extras=("tensorrt", "tensorrt-rtx")),
    "captum": Package(name="captum", extras=("explain",), purpose="explain by gradients"),
    "pyarrow": Package(name="pyarrow", extras=("tables",)),
    "openpyxl": Package(name="openpyxl", extras=("tables",)),
    "zstandard": Package(name="zstandard", extras=("tables",)),
    "fastapi": Package(name="fastapi", extras=("serve",), purpose="serve"),
    "uvicorn": Package(name="uvicorn", extras=("serve",), purpose="serve"),
    "uvloop": Package(name="uvloop", extras=("serve", "load")),
    "aiohttp": Package(name="aiohttp", extras=("load",), purpose="bench --serve"),
    "httptools": Package(name="httptools", extras=("serve",)),
    "orjson": Package(name="orjson", extras=("serve",)),
    "prometheus_client": Package(name="prometheus-client", extras=("serve",)),
    "opentelemetry": Package(name="opentelemetry-sdk", extras=("otel",)),
    "opentelemetry.exporter": Package(name="opentelemetry-exporter-otlp-proto-http", extras=("otel",)),
    "langchain_core": Package(name="langchain-core", extras=("langchain",)),
    "llama_index": Package(name="llama-index-core", extras=("llama-index",)),
    "haystack": Package(name="haystack-ai", extras=("haystack",)),
    "spacy": Package(name="spacy", extras=("spacy",)),
    "pandas": Package(name="pandas", extras=("pandas",)),
    "polars": Package(name="polars", extras=("polars",)),
    "grpc": Package(name="grpcio", extras=("grpc",)),
    "google.protobuf": Package(name="protobuf", extras=("grpc",)),
    "ray": Package(name="ray", extras=("ray",), purpose="predict --ray, serve --ray"),
}
# What the commands need. What engines need is in their registry, `nopad.runtime.engines.base.ENGINES`.
COMMAND_NEEDS: Mapping[str, Need] = {
    "train": Need(modules=("torch", "transformers", "accelerate", "datasets", "sklearn"), extra="train"),
    "export": Need(modules=("torch", "transformers", "onnx", "onnxscript"), extra="export"),
    "run": Need(modules=("yaml",), extra="export"),
    "predict": Need(modules=("onnxruntime",), extra="cpu"),
    "serve": Need(modules=("fastapi", "uvicorn", "uvloop", "httptools", "orjson", "prometheus_client"), extra="serve"),
}
# Competitors in `nopad bench`.
COMPETITOR_NEEDS: Mapping[str, Need] = {
    "transformers": Need(modules=("torch", "transformers"), extra="bench"),
    "zentorch": Need(modules=("torch", "transformers", "zentorch"), extra="zentorch"),
    "optimum": Need(modules=("onnxruntime",), extra="bench"),
    "openvino": Need(modules=("openvino",), extra="bench"),
    "optimum-intel": Need(modules=("openvino", "optimum.intel"), extra="bench"),
    "sentence-transformers": Need(modules=("sentence_transformers",), extra="bench"),
    "st-onnx": Need(modules=("sentence_transformers", "optimum", "onnxruntime"), extra="bench"),
    "st-openvino": Need(modules=("sentence_transformers", "openvino", "optimum.intel"), extra="bench"),
    "fastembed": Need(modules=("fastembed", "sentence_transformers", "optimum"), extra="bench"),
}


def install_hint(extra: str) -> str:
    """The command that installs an extra of nopad."""
    return f"pip install 'nopad[{extra}]'"


def package_of(module: str) -> str:
    """The entry of `PACKAGES` that a module belongs to: `optimum.intel` for optimum.intel.openvino; else its root."""
    parts = module.split(".")
    names = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next((name for name in names if name in PACKAGES), parts[0])


def extra_of(module: str, command: str = "") -> str | None:
    """The extra that brings `module`: `command`'s own if that does; None where no extra is known."""
    extras = PACKAGES[module].extras if module in PACKAGES else ()
    return command if command in extras else next(iter(extras), None)


def version_of(name: str) -> str | None:
    """The installed version of a package, by pip's name of it; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def importable(module: str) -> bool:
    """Whether a top-level module is installed; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # an import hook that forbids it
        return False


def missing(modules: Sequence[str]) -> list[str]:
    """Those of `modules` that are not installed."""
    return [module for module in modules if not importable(module)]
