"""Errors that the user can fix, each with a hint and an exit code."""

from niels_gpt.printable import escape_line

NO_MEMORY = (  # PyTorch has no error class for it on cpu and mps; the first three are from mps
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
    """Base class of expected errors. `hint` says how to fix it; `exit_code` is the command's.

    Message and hint may quote a file or a command line: control characters are escaped here, once.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:  # BaseException keeps the arguments, and pickles them
        self.message = "\n".join(map(escape_line, message.split("\n")))
        self.hint = escape_line(hint)

    def __str__(self) -> str:
        return self.message


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
    """A file that cannot be written or read: the disk is full, or a folder is read-only or gone."""

    exit_code = 8


class Stopped(NielsError):
    """A run that stopped as asked, not an error: it is saved, and can be continued."""


class TimeIsUp(Stopped):
    """The run has used up its time and is saved; it can be resumed with more time."""

    exit_code = 75


class Interrupted(Stopped):
    """A signal ended the run after its step was saved; the same command resumes it."""

    def __init__(self, message: str, hint: str, signum: int) -> None:
        super().__init__(message, hint)
        self.signum, self.exit_code = signum, 128 + signum


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out."""
    if isinstance(error, RuntimeError | OSError | ImportError):
        return any(text in str(error) for text in NO_MEMORY)
    return isinstance(error, MemoryError)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
