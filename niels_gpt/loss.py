"""The next-token loss of every phase.

Shapes: N = B * T rows of C channels, V ids.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100  # the id of a token that is not a target; the default of PyTorch's cross_entropy
ROWS = 512  # rows of the head at a time: few enough for their logits to stay in the cache


def next_token_loss(logits: Tensor, targets: Tensor, denominator: float) -> Tensor:
    """Return the summed cross-entropy of the targets divided by `denominator`, in nats, in fp32.

    `logits` (B, T, V), `targets` (B, T) with IGNORE for tokens that are not targets. The caller chooses the
    denominator, so that microbatches with unequal numbers of targets add up to an exact mean.
    """
    return _sum_loss(logits.flatten(0, 1).float(), targets.flatten()) / denominator


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor, denominator: float) -> Tensor:
    """Return the next_token_loss of a linear head without making all of its logits.

    `hidden` (B, T, C), `weight` (V, C), `targets` (B, T). Gradients, if wanted, are computed along with the loss,
    ROWS at a time, so that neither logits nor probabilities are kept for the backward pass (as in Liger Kernel,
    Hsu et al., 2024). All of it is in fp32, under autocast too. It allows one backward pass.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        rows, head = hidden.flatten(0, 1).float(), weight.float()  # (N, C), (V, C)
        if torch.is_grad_enabled():
            total: Tensor = _HeadLoss.apply(rows, head, targets.flatten())  # type: ignore[no-untyped-call]
        else:
            pairs = zip(rows.split(ROWS), targets.flatten().split(ROWS), strict=True)
            total = torch.stack([_sum_loss(F.linear(x, head), y) for x, y in pairs]).sum()
        return total / denominator


def allows_softmax_in_place(device: torch.device) -> bool:
    """Return whether softmax may overwrite its input: on the CPU only, as it is untested on mps."""
    return device.type == "cpu"


def _sum_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")


class _HeadLoss(torch.autograd.Function):
    """The summed cross-entropy of a linear head, and its gradients for an outer gradient of one."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Process the rows in parts; on the CPU all parts share one buffer (ROWS, V)."""
        d_hidden, d_weight = torch.empty_like(hidden), torch.empty_like(weight)
        buffer, total = hidden.new_empty(min(ROWS, len(hidden)), len(weight)), hidden.new_zeros(())
        in_place = allows_softmax_in_place(hidden.device)
        for first in range(0, len(hidden), ROWS):
            part = slice(first, first + ROWS)
            x, y = hidden[part], targets[part, None].clamp(min=0)  # (rows, C), (rows, 1)
            is_target = targets[part, None] != IGNORE  # (rows, 1)
            logits = torch.mm(x, weight.t(), out=buffer[: len(x)])  # (rows, V)
            largest, logit = logits.amax(1, keepdim=True), logits.gather(1, y)
            p = torch.softmax(logits, 1, out=logits if in_place else None)
            log_sum = largest - p.amax(1, keepdim=True).log()  # the largest probability is exp(largest - log_sum)
            total += ((log_sum - logit) * is_target).sum()
            p.scatter_add_(1, y, p.new_full((len(x), 1), -1.0))  # minus one-hot: the gradient of the logits
            torch.mm(p, weight, out=d_hidden[part]).mul_(is_target)
            d_weight.addmm_(p.t(), x * is_target, beta=float(first > 0))  # 0 at first: d_weight is not initialised
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, None]:
        """Scale the gradients in place; autograd refuses a second time."""
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden.mul_(outer[0]), d_weight.mul_(outer[0]), None
