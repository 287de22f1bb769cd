"""The optimizer, and the learning rate of each step."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from niels_gpt.model.gpt import GPT
from train.config.schema import TrainCfgSchema
from train.loop.muon import Muon


class WeightAverage(Optimizer):
    """Keep a moving average of the weights, which it leaves as they are: the last part of a CombinedOptimizer.

    The decay after n steps is at most (1 + n) / (10 + n), so that the first weights are soon forgotten.
    """

    def __init__(self, params: Iterable[Tensor], decay: float) -> None:
        super().__init__(params, {"lr": 0.0, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move the average towards the weights."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state |= {"step": torch.zeros(()), "ema": weight.clone()}
                share = 9 / (10 + state["step"])  # on the CPU
                state["ema"].lerp_(weight, max(1 - group["decay"], share.item()))
                state["step"] += 1


AVERAGES = {  # of each weight
    AdamW: ("step", "exp_avg", "exp_avg_sq"),
    Muon: ("momentum_buffer",),
    WeightAverage: ("step", "ema"),
}


class CombinedOptimizer(Optimizer):
    """Several optimizers that step together, each on its own parameters."""

    def __init__(self, *parts: Optimizer) -> None:
        super().__init__(parts[0].param_groups, {})
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]  # shared, not copied

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step each optimizer."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all optimizers, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the result of `state_dict`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def make_optimizer(model: GPT, cfg: TrainCfgSchema) -> Optimizer:
    """Return the optimizer, with weight decay on matrices only.

    optim=adamw is AdamW (Loshchilov and Hutter, 2019), fused. With optim=muon, Muon updates the matrices of the
    blocks at the same learning rate, and AdamW the rest. With `ema` a WeightAverage follows.
    """
    vectors = [p for p in model.parameters() if p.dim() < 2]
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    hidden = [p for p in model.blocks.parameters() if p.dim() >= 2 and cfg.optim == "muon"]
    left = [p for p in matrices if all(p is not other for other in hidden)]
    groups = [
        {"params": left, "weight_decay": cfg.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    parts: list[Optimizer] = [AdamW(groups, lr=cfg.base_lr, betas=cfg.betas, fused=True)]
    if hidden:
        parts.append(Muon(hidden, cfg.base_lr, cfg.weight_decay, cfg.momentum))
    if cfg.ema is not None:
        parts.append(WeightAverage(model.parameters(), cfg.ema))
    return CombinedOptimizer(*parts) if len(parts) > 1 else parts[0]


def load_optimizer_state(optimizer: Optimizer, saved: dict[str, Any], step: int) -> None:
    """Load the averages of a state that was saved after `step` steps; the settings stay those of this run.

    ValueError if a weight has no averages, or some of another shape, beyond which a fused kernel would write.
    Exception if the state is not an optimizer's; torch raises many kinds.
    """
    settings = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own | {"lr": group["lr"]})  # the rate of the last step
    for part in optimizer.parts if isinstance(optimizer, CombinedOptimizer) else [optimizer]:
        weights = [weight for group in part.param_groups for weight in group["params"]]
        for weight in weights:
            averages = part.state.get(weight, {})
            shapes = {name: list(average.shape) for name, average in averages.items() if average.is_contiguous()}
            expected = {name: [] if name == "step" else list(weight.shape) for name in AVERAGES[type(part)]}
            if shapes != expected and (step or averages):
                raise ValueError(f"a weight has averages of shapes {shapes}, not {expected}")


def lr_at(step: int, cfg: TrainCfgSchema) -> float:
    """Return the learning rate of the update after `step` updates: linear warm-up, then cosine or linear decay.

    The first update has base_lr / cfg.warmup, not 0; min_lr is reached one step after the last update.
    """
    if step < cfg.warmup:
        return cfg.base_lr * (step + 1) / cfg.warmup
    done = (step - cfg.warmup) / max(1, cfg.total_steps - cfg.warmup)
    left = 1.0 - min(1.0, done)
    height = left if cfg.schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
    return cfg.min_lr + (cfg.base_lr - cfg.min_lr) * height


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def unscale_gradients(model: GPT, scale: float) -> None:
    """Divide the fp32 gradients by the power of two that scaled the loss; exact except for underflow."""
    if scale == 1.0:
        return
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(1.0 / scale)
