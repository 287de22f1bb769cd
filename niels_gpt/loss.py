"""The one loss of every phase."""

import torch
from torch.nn import functional as F

IGNORE = -100  # a target with this id is not learned; PyTorch's own default for cross_entropy


def next_token_loss(logits: torch.Tensor, targets: torch.Tensor, denominator: float) -> torch.Tensor:
    """Return the summed cross-entropy of the learned targets over `denominator`, in nats, in fp32.

    `logits` (B, T, V), `targets` (B, T) with IGNORE where nothing is learned. The sum is divided by a number
    that the caller chooses, so that microbatches with unequal numbers of targets add up to an exact mean.
    """
    flat = logits.flatten(0, 1).float()  # (B*T, V)
    return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE, reduction="sum") / denominator
