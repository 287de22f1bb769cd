"""Validation loss over the same sequences every time, whatever B, and what to measure it against."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from niels_gpt.data.batches import Batch, Source, require_ids
from niels_gpt.errors import DataError
from niels_gpt.loss import IGNORE
from niels_gpt.model.gpt import GPT
from train.amp import Amp

UNIGRAM_SEQUENCES = 4096  # enough of the training split to count how often each token occurs


class Yardstick(NamedTuple):
    """What a loss on the validation sequences means: `unigram_loss` in nats a target, bytes a target."""

    unigram_loss: float
    bytes_per_target: float

    def bits_per_byte(self, loss: float) -> float:
        """Turn nats a target into bits a byte, which compare between tokenizers."""
        return loss / math.log(2) / self.bytes_per_target


def batches(source: Source, sequences: int, B: int) -> Iterator[Batch]:
    """Yield the first `sequences` of an epoch, or the whole of a shorter one, in batches of exactly B.

    The last batch is filled up with rows that have no targets.
    """
    sequences = min(sequences, len(source))
    for first in range(0, sequences, B):
        batch = source.draw(first, B)
        batch.y[sequences - first :] = IGNORE
        yield batch


@torch.no_grad()
def evaluate(
    model: GPT, source: Source, sequences: int, B: int, amp: Amp, stop: Callable[[], bool] = lambda: False
) -> float | None:
    """Return the mean loss a target, in nats, or None if it was stopped; the model stays in the mode it was in."""
    was_training = model.training
    model.eval()
    total, targets = torch.zeros((), device=model.device), 0
    mean: float | None = None
    for x, y in batches(source, sequences, B):
        if stop():
            break
        require_ids(Batch(x, y), model.cfg.V)
        with amp():
            total += model.loss(x.to(model.device), y.to(model.device), 1.0)
        targets += int((y != IGNORE).sum())
    else:
        mean = total.item() / targets
    model.train(was_training)
    return mean


def yardstick(train: Source, val: Source, sequences: int, token_bytes: Sequence[int], B: int) -> Yardstick:
    """Measure a unigram model, learned from the training targets, on the validation sequences.

    Raises:
        DataError: no target there stands for a byte of text, so that there is nothing to measure by.
    """
    seen = _counts(train, UNIGRAM_SEQUENCES, len(token_bytes), B) + 1.0  # add-one smoothing
    asked = _counts(val, sequences, len(token_bytes), B)
    surprise = -(seen / seen.sum()).log()  # nats, (V)
    length = (asked * torch.tensor(token_bytes, dtype=torch.float64)).sum()
    if not length:
        there = f"{int(asked.sum())} targets in {min(sequences, len(val))} of {len(val)} validation sequences"
        raise DataError(
            f"train.eval_sequences={sequences} was asked for, but the {there} stand for no byte of text",
            "use more train.eval_sequences or a larger model.T, or give longer texts",
        )
    return Yardstick(float((asked * surprise).sum() / asked.sum()), float(length / asked.sum()))


def _counts(source: Source, sequences: int, V: int, B: int) -> Tensor:
    """Return how often each id is a target, (V), float64."""
    counts = torch.zeros(V, dtype=torch.float64)
    for _, y in batches(source, sequences, B):
        counts += torch.bincount(y[y != IGNORE], minlength=V)
    return counts
