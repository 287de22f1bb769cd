"""Replay the device's random state when a block is recomputed, so that dropout repeats.

torch.utils.checkpoint does not do this for mps: the recomputed block would draw other masks, and the gradients
would be silently wrong (pytorch issue 127676).
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from niels_gpt.device import get_random_state, set_random_state


class ReplayState(AbstractContextManager[None]):
    """Within it the random state is that of its making; afterwards the current one again."""

    live: Tensor

    def __init__(self, device: torch.device) -> None:
        self.device, self.recorded = device, get_random_state(device)

    def __enter__(self) -> None:
        self.live = get_random_state(self.device)
        set_random_state(self.device, self.recorded)

    def __exit__(self, *_: object) -> None:
        set_random_state(self.device, self.live)
