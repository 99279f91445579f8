"""Telling a lack of memory from other errors."""

import gc
import re
import sys

_WORDS = re.compile(
    r"out of memory|not enough memory|bad[_ ]alloc|can't allocate memory|cannot allocate memory|failed to allocate|"
    r"unable to allocate|could not allocate|DefaultCPUAllocator|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)


def means_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch (CUDA or CPU), OpenVINO or numpy says that memory ran out."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_WORDS.search(str(error))))


def first_line(error: BaseException) -> str:
    """What an error says, cut to its first line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def free_models() -> None:
    """Give back the memory of models that nothing refers to any more but themselves: sentence-transformers' do."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
