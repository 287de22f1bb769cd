"""How an error says that memory has run out: PyTorch has no class for it on the CPU or on mps."""

TEXTS = (  # of RuntimeErrors mostly, the first three of mps
    "MPS backend out of memory",
    "Invalid buffer size",
    "OutOfMemory",  # of Metal itself: kIOGPUCommandBufferCallbackErrorOutOfMemory
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "Cannot allocate memory",  # ENOMEM: mapping a file, or a library
    "failed to map segment",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no room in memory."""
    if isinstance(error, RuntimeError | OSError | ImportError):
        return any(text in str(error) for text in TEXTS)
    return isinstance(error, MemoryError)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
