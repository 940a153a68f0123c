"""The words in which each library says that memory ran out, on a GPU or on the machine."""

from __future__ import annotations

import re

_WORDS = re.compile(
    r"out[ _]?of[ _]?memory"  # CUDA and its driver, TensorRT, PyTorch on a GPU
    r"|cudaErrorMemoryAllocation"
    r"|failed to allocate memory"  # ONNX Runtime
    r"|ca(nno|n')t allocate memory"  # the operating system, PyTorch on a CPU
    r"|not enough memory"
    r"|bad[_ ]alloc|bad_array_new_length"  # the C++ standard library
    r"|workspace limit",  # TensorRT's builder, of the memory that --workspace allows
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether an error, or a library's message, says that memory ran out."""
    return isinstance(error, MemoryError) or _WORDS.search(str(error)) is not None
