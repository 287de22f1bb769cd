"""Carry out a run: pretraining, SFT, or both."""

from train.run.runner import run

__all__ = ["run"]
