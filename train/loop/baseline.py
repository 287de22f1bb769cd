"""Fit a unigram model, the baseline that knows only how often each token occurs."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from niels_gpt.data.batches import Source, require_valid_ids
from niels_gpt.data.statistics import measure_surprise
from niels_gpt.errors import DataError
from niels_gpt.loss import IGNORE
from train.loop.evaluate import ValSource, draw_batches

UNIGRAM_SEQUENCES = 4096  # enough of the training split to count how often each token occurs


class UnigramBaseline(NamedTuple):
    """The loss of a unigram model on the validation sequences, in nats per target, and their bytes per target."""

    unigram_loss: float
    bytes_per_target: float

    def bits_per_byte(self, loss: float) -> float:
        """Convert nats per target to bits per byte, which compare between tokenizers."""
        return loss / math.log(2) / self.bytes_per_target


def fit_unigram_baseline(
    train: Source, val: Sequence[ValSource], token_bytes: Sequence[int], B: int
) -> UnigramBaseline:
    """Fit a unigram model to the training targets and evaluate it on the validation sequences.

    DataError if the validation targets contain no bytes of text.
    """
    V = len(token_bytes)
    surprise = measure_surprise(count_targets(train, UNIGRAM_SEQUENCES, V, B))
    counts = [count_targets(part.source, part.sequences, V, B) for part in val]

    def average(values: Tensor) -> float:  # `values` by id, over the targets of each source by its share
        return sum(part.share * float((n * values).sum() / n.sum()) for part, n in zip(val, counts, strict=True))

    bytes_per_target = average(torch.tensor(token_bytes, dtype=torch.float64))  # noqa: TID251  on the CPU
    if not bytes_per_target:
        targets, sequences = sum(int(n.sum()) for n in counts), sum(part.sequences for part in val)
        raise DataError(
            f"the {targets} targets in {sequences} validation sequences contain no bytes of text",
            "raise train.eval_sequences or model.T, or use longer texts",
        )
    return UnigramBaseline(average(surprise), bytes_per_target)


def count_targets(source: Source, sequences: int, V: int, B: int) -> Tensor:
    """Return how often each id is a target, (V), float64."""
    counts = torch.zeros(V, dtype=torch.float64)  # noqa: TID251  on the CPU
    for batch in draw_batches(source, sequences, B):
        require_valid_ids(batch, V)
        counts += torch.bincount(batch.y[batch.y != IGNORE], minlength=V)
    return counts
