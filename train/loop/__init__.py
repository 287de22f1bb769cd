"""The training loop and its parts."""

from train.loop.steps import optimizer_step, train_loop

__all__ = ["optimizer_step", "train_loop"]
