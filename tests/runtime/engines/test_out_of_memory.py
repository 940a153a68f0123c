"""Every library's out-of-memory messages are recognised, and no other message is."""

import pytest

from nopad.runtime.engines.out_of_memory import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),  # PyTorch
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        "CUDA failure 2: out of memory",
        "page-locking 3.1 MB of host memory: cudaErrorMemoryAllocation (an error)",
        "cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY",
        "[virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (Requested size was 1 GB)",  # TensorRT
        "Could not find any implementation for node, workspace limit 1048576 bytes",  # its builder
        "Failed to allocate memory for requested buffer of size 12884901888",  # ONNX Runtime
        "OSError: [Errno 12] Cannot allocate memory",  # the operating system
        "not enough memory: you tried to allocate 8 bytes",
        "std::bad_alloc",
        "terminate called after throwing an instance of 'std::bad_array_new_length'",
    ],
)
def test_the_words_for_memory_that_ran_out(error: Exception | str) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [ValueError("another"), "an illegal memory access was encountered", "bad profile", ""]
)
def test_other_errors(error: Exception | str) -> None:
    assert not is_out_of_memory(error)
