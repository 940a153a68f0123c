"""Bundle -> predictions. Imports numpy and tokenizers, and an engine's library when one is opened; never torch."""

from nopad.runtime.predictor import Model, load
from nopad.runtime.types import (
    Embedding,
    Entity,
    Failure,
    MaskFill,
    Prediction,
    Ranked,
    Tagging,
)

__all__ = ["Embedding", "Entity", "Failure", "MaskFill", "Model", "Prediction", "Ranked", "Tagging", "load"]
