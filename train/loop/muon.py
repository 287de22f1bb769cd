"""The Muon optimizer: orthogonalized momentum (Jordan et al., 2024)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of the iteration, steep at 0 so that five rounds do
ROUNDS = 5
TINY = 1e-7


class Muon(Optimizer):
    """Update matrices by orthogonal steps, with Nesterov momentum and decoupled weight decay.

    Like torch.optim.Muon with `match_rms_adamw` (Liu et al., Muon is Scalable for LLM Training, 2025): a step is
    as large as AdamW's at the same learning rate. Torch's computes in bfloat16, which is very slow on a CPU
    without bfloat16 products; there this one computes in float32.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix (rows, columns) that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                direction = orthogonalize(matrix.grad.lerp(mean, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return the matrix (rows, columns) with its singular values moved near 1."""
    a, b, c = QUINTIC
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide.to(choose_dtype(matrix.device))
    x = x / x.norm().clamp(min=TINY)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if wide is not matrix else x


def choose_dtype(device: torch.device) -> torch.dtype:
    """Return the smallest dtype in which a device multiplies matrices at full speed."""
    slow = device.type == "cpu" and not torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.float32 if slow else torch.bfloat16
