"""Replay the device's random state when a block is recomputed, so that dropout repeats.

torch.utils.checkpoint does not do this for mps: the recomputed block would draw other masks, and the gradients
would be silently wrong (pytorch issue 127676).
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from niels_gpt.device import get_random_state, set_random_state


class _RecordState(AbstractContextManager[None]):
    """Around the block: record the random state that it starts from, and do not change it."""

    state: Tensor

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> None:
        self.state = get_random_state(self.device)

    def __exit__(self, *_: object) -> None:
        pass


class _ReplayState(AbstractContextManager[None]):
    """Around the recomputation: set the recorded state, then restore the current one."""

    live: Tensor

    def __init__(self, recorded: _RecordState) -> None:
        self.recorded = recorded

    def __enter__(self) -> None:
        self.live = get_random_state(self.recorded.device)
        set_random_state(self.recorded.device, self.recorded.state)

    def __exit__(self, *_: object) -> None:
        set_random_state(self.recorded.device, self.live)


def make_replay_contexts(
    device: torch.device,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the two contexts that torch.utils.checkpoint's `context_fn` wants: forward and recomputation."""
    recorded = _RecordState(device)
    return recorded, _ReplayState(recorded)
