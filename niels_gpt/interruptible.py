"""Run a call that ignores signals, such as one into Rust, in a thread that a signal can abandon."""

import threading
from collections.abc import Callable

NAME = "interruptible"


def run_interruptibly(call: Callable[[], object]) -> None:
    """Wait for `call` in slices, so that signals are handled meanwhile, and re-raise its error."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # a panic in Rust is not an Exception
            raised.append(error)

    thread = threading.Thread(target=run, name=NAME, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)  # macOS does not interrupt a longer wait
    if raised:
        raise raised[0]


def has_abandoned_call() -> bool:
    """Return whether a call still runs; one in Rust aborts the process if it returns while Python shuts down."""
    return any(thread.name == NAME for thread in threading.enumerate())
