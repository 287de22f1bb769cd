"""Compute the validation loss on the same sequences every time, and the loss of a unigram model beside it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from niels_gpt.data.batches import Batch, Source, require_valid_ids
from niels_gpt.data.statistics import measure_surprise
from niels_gpt.errors import DataError
from niels_gpt.loss import IGNORE
from niels_gpt.model.gpt import GPT
from train.loop.amp import Amp

UNIGRAM_SEQUENCES = 4096  # enough of the training split to count how often each token occurs


def draw_batches(source: Source, sequences: int, B: int) -> Iterator[Batch]:
    """Yield the first `sequences` of an epoch, at most all of it, in batches of exactly B.

    The last batch is filled up with sequences without targets.
    """
    sequences = min(sequences, len(source))
    for first in range(0, sequences, B):
        batch = source.draw(first, B)
        batch.y[sequences - first :] = IGNORE
        yield batch


class ValSource(NamedTuple):
    """A source of validation sequences in a seeded order, of which an evaluation sees the first `sequences`.

    `share` is its part of the loss; all shares add up to 1.
    """

    name: str
    source: Source
    share: float
    sequences: int


class ValLoss(NamedTuple):
    """A validation loss in nats per target: the mean over the sources, weighted by their shares."""

    mean: float
    by_source: dict[str, float]


def allocate_sequences(sources: Mapping[str, tuple[Source, float]], sequences: int) -> list[ValSource]:
    """Divide the sequences of an evaluation among weighted sources, by name.

    No source gives a sequence twice; the others make up for one with fewer than its share.
    """
    total = sum(weight for _, weight in sources.values())
    shares = {name: weight / total for name, (_, weight) in sources.items()}
    left, share_left, asked = sequences, 1.0, dict[str, int]()
    for name in sorted(sources, key=lambda name: len(sources[name][0]) / shares[name]):  # the scarcest first
        asked[name] = min(len(sources[name][0]), max(1, round(left * shares[name] / share_left)))
        left, share_left = left - asked[name], share_left - shares[name]
    return [ValSource(name, source, shares[name], asked[name]) for name, (source, _) in sources.items()]


@torch.no_grad()
def evaluate(
    model: GPT, sources: Sequence[ValSource], B: int, amp: Amp, stop: Callable[[], bool] = lambda: False
) -> ValLoss | None:
    """Return the validation loss, or None if stopped. The model is left in eval mode."""
    model.eval()
    losses = dict[str, float]()
    for part in sources:
        total, targets = torch.zeros((), device=model.device), 0
        for batch in draw_batches(part.source, part.sequences, B):
            if stop():
                return None
            require_valid_ids(batch, model.cfg.V)
            x, y, segments = batch.to(model.device)
            with amp():
                total += model.loss(x, y, 1.0, segments)
            targets += int((batch.y != IGNORE).sum())
        losses[part.name] = total.item() / targets
    return ValLoss(sum(part.share * losses[part.name] for part in sources), losses)


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
