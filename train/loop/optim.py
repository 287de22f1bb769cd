"""The optimizer, and the learning rate of each step."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from niels_gpt.model.gpt import GPT
from train.config.schema import TrainCfgSchema
from train.loop.muon import Muon

AVERAGES = {AdamW: {"step", "exp_avg", "exp_avg_sq"}, Muon: {"momentum_buffer"}}  # what each keeps of a weight


class Together(Optimizer):
    """Several optimizers that step as one, each on parameters of its own."""

    def __init__(self, *parts: Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})  # the very groups, shared
        self.parts = parts

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step of each."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what state_dict returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def make_optimizer(model: GPT, cfg: TrainCfgSchema) -> Optimizer:
    """Return what updates the weights, with weight decay on matrices only.

    With optim=adamw that is AdamW (Loshchilov and Hutter, 2019), fused; with optim=muon the matrices of the blocks
    are left to Muon, at the same learning rate.
    """
    vectors = [p for p in model.parameters() if p.dim() < 2]
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    hidden = [p for p in model.blocks.parameters() if p.dim() >= 2 and cfg.optim == "muon"]
    left = [p for p in matrices if all(p is not other for other in hidden)]
    groups = [
        {"params": left, "weight_decay": cfg.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adamw = AdamW(groups, lr=cfg.base_lr, betas=cfg.betas, fused=True)
    if not hidden:
        return adamw
    return Together(adamw, Muon(hidden, cfg.base_lr, cfg.weight_decay, cfg.momentum))


def load_averages(optimizer: Optimizer, saved: dict[str, Any], step: int) -> None:
    """Go on with the averages of a state saved after so many steps; the settings stay those of this run.

    Raises:
        ValueError: a weight has none, or one is not of the weight's shape: a fused kernel would read and write
            beyond it.
        Exception: of any kind, where the state is not as an optimizer's.
    """
    settings = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own | {"lr": group["lr"]})  # each step sets it; until then it is that of the last one
    for part in optimizer.parts if isinstance(optimizer, Together) else [optimizer]:
        weights = [weight for group in part.param_groups for weight in group["params"]]
        if step and (without := sum(weight not in part.state for weight in weights)):
            raise ValueError(f"it keeps no averages of {without} of {len(weights)} weights")
        for parameter, kept in part.state.items():
            if kept.keys() != AVERAGES[type(part)]:
                raise ValueError(f"it keeps {len(kept)} averages of a weight, not {len(AVERAGES[type(part)])}")
            for name, average in kept.items():
                _require_shape(name, average, () if name == "step" else tuple(parameter.shape))


def _require_shape(name: str, average: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(average.shape) != shape or not average.is_contiguous():
        raise ValueError(f"{name} is {list(average.shape)}, not {list(shape)}")


def lr_at(step: int, cfg: TrainCfgSchema) -> float:
    """Return the learning rate of the update that follows `step` updates.

    It warms up in a line, then falls as a cosine or in a line to min_lr. It is never 0: the first update has
    base_lr / cfg.warmup.
    """
    if step < cfg.warmup:
        return cfg.base_lr * (step + 1) / cfg.warmup
    done = (step - cfg.warmup) / max(1, cfg.total_steps - cfg.warmup)
    left = 1.0 - min(1.0, done)
    height = left if cfg.schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
    return cfg.min_lr + (cfg.base_lr - cfg.min_lr) * height


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Make `lr` the learning rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def unscale_gradients(model: GPT, scale: float) -> None:
    """Divide the fp32 gradients by the power of two that the loss was multiplied by; exact, but for underflow."""
    if scale == 1.0:
        return
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(1.0 / scale)


def clip_gradients(model: GPT, largest: float) -> torch.Tensor:
    """Scale the gradients down to a norm of `largest` at most; return the norm before, a 0-d tensor."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), largest)
