"""Errors that the user can fix: each says what is wrong and carries a hint."""

from typing import Any

from niels_gpt.printable import printable

NO_MEMORY = (  # PyTorch has no class for it on the CPU or on mps; the first three are mps's
    "MPS backend out of memory",
    "Invalid buffer size",
    "OutOfMemory",  # of Metal itself: kIOGPUCommandBufferCallbackErrorOutOfMemory
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "Cannot allocate memory",  # ENOMEM: mapping a file, or a library
    "failed to map segment",
)


class NielsError(Exception):
    """Base of every expected failure. `hint` is the way out, `exit_code` what a command ends with.

    Whatever message and hint quote of a file or a command line is spelt out here, once: a terminal or a log can
    show them as they are.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__("\n".join(map(printable, message.split("\n"))))
        self.hint = printable(hint)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes, as in a sweep."""
        return type(self), (str(self), self.hint)


class ConfigError(NielsError):
    """A setting that cannot be used; the message has one line per bad setting."""

    exit_code = 2


class DataError(NielsError):
    """Text, dialogues, a tokenizer or a token cache that cannot be used."""

    exit_code = 3


class CheckpointError(NielsError):
    """No usable checkpoint, or one that does not fit this run."""

    exit_code = 4


class NonFiniteError(NielsError):
    """A loss, gradient or weight that is nan or inf."""

    exit_code = 5


class OutOfMemory(NielsError):
    """The device has no room for a microbatch of this size."""

    exit_code = 6


class RunFolderInUse(NielsError):
    """Another process is writing to the run folder."""

    exit_code = 7


class DiskError(NielsError):
    """A file that cannot be written or read: the disk is full, a folder is not writable or has gone."""

    exit_code = 8


class TimeIsUp(NielsError):
    """The run has used the time it was given, and is saved; with more time it goes on from there."""

    exit_code = 75


class Interrupted(NielsError):
    """A signal ended the run after its step was saved; the same command goes on from there."""

    def __init__(self, message: str, hint: str, signum: int) -> None:
        super().__init__(message, hint)
        self.signum, self.exit_code = signum, 128 + signum

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes, as in a sweep."""
        return Interrupted, (str(self), self.hint, self.signum)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no room in memory."""
    if isinstance(error, RuntimeError | OSError | ImportError):
        return any(text in str(error) for text in NO_MEMORY)
    return isinstance(error, MemoryError)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
