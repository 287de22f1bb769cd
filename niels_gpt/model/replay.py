"""Replay the device's random state when a block is recomputed, so that dropout repeats.

torch.utils.checkpoint does so for the CPU alone: on mps the recomputed block would draw other masks, and the
gradients would be silently wrong (pytorch issue 127676).
"""

from contextlib import AbstractContextManager
from types import TracebackType

import torch
from torch import Tensor

from niels_gpt.device import get_random_state, set_random_state


class _Remember(AbstractContextManager[None]):
    """Around the block: note the state it starts from; the stream itself goes on as without recomputation."""

    state: Tensor

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> None:
        self.state = get_random_state(self.device)

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        pass


class _Replay(AbstractContextManager[None]):
    """Around the recomputation: start from the noted state, then put the live stream back."""

    live: Tensor

    def __init__(self, noted: _Remember) -> None:
        self.noted = noted

    def __enter__(self) -> None:
        self.live = get_random_state(self.noted.device)
        set_random_state(self.noted.device, self.noted.state)

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        set_random_state(self.noted.device, self.live)


def replaying_contexts(device: torch.device) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts for `context_fn` of torch.utils.checkpoint: of the block and of its recomputation."""
    noted = _Remember(device)
    return noted, _Replay(noted)
