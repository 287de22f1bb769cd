"""The optimizer and the learning rate of each step."""

import math

import torch
from torch.optim import AdamW, Optimizer

from niels_gpt.model.gpt import GPT
from train.config import TrainCfgSchema


def make_optimizer(model: GPT, cfg: TrainCfgSchema) -> Optimizer:
    """Return AdamW (Loshchilov and Hutter, 2019), fused, with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": cfg.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=cfg.base_lr, betas=cfg.betas, fused=True)


def lr_at(step: int, cfg: TrainCfgSchema) -> float:
    """Return the learning rate of the update that follows `step` updates: linear warm-up, then a cosine.

    It is never 0: the first update has base_lr / cfg.warmup.
    """
    if step < cfg.warmup:
        return cfg.base_lr * (step + 1) / cfg.warmup
    done = (step - cfg.warmup) / max(1, cfg.total_steps - cfg.warmup)
    return cfg.min_lr + (cfg.base_lr - cfg.min_lr) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


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
