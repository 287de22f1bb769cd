"""Compute the validation loss on the same sequences every time, and a unigram baseline."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from niels_gpt.data.batches import Batch, Source, require_ids
from niels_gpt.errors import DataError
from niels_gpt.loss import IGNORE
from niels_gpt.model.gpt import GPT
from train.loop.amp import Amp

UNIGRAM_SEQUENCES = 4096  # enough of the training split to count how often each token occurs


class UnigramBaseline(NamedTuple):
    """The loss of a unigram model on the validation sequences, in nats per target, and their bytes per target."""

    unigram_loss: float
    bytes_per_target: float

    def bits_per_byte(self, loss: float) -> float:
        """Convert nats per target to bits per byte, which compare between tokenizers."""
        return loss / math.log(2) / self.bytes_per_target


def draw_batches(source: Source, sequences: int, B: int) -> Iterator[Batch]:
    """Yield the first `sequences` of an epoch, at most all of it, in batches of exactly B.

    The last batch is filled up with rows without targets.
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

    No source gives a row twice; the others make up for one with fewer rows than its share.
    """
    total = sum(weight for _, weight in sources.values())
    shares = {name: weight / total for name, (_, weight) in sources.items()}
    left, share_left, asked = sequences, 1.0, dict[str, int]()
    for name in sorted(sources, key=lambda name: len(sources[name][0]) / shares[name]):  # the scarcest first
        asked[name] = min(len(sources[name][0]), max(1, round(left * shares[name] / share_left)))
        left, share_left = left - asked[name], share_left - shares[name]
    return [ValSource(name, source, shares[name], asked[name]) for name, (source, _) in sources.items()]


def evaluate(
    model: GPT, sources: Sequence[ValSource], B: int, amp: Amp, stop: Callable[[], bool] = lambda: False
) -> ValLoss | None:
    """Return the validation loss, or None if stopped. The model's mode (train or eval) is restored."""
    was_training = model.training
    model.eval()
    losses = dict[str, float]()
    try:
        for part in sources:
            loss = compute_mean_loss(model, part.source, part.sequences, B, amp, stop)
            if loss is None:
                return None
            losses[part.name] = loss
    finally:
        model.train(was_training)
    return ValLoss(sum(part.share * losses[part.name] for part in sources), losses)


@torch.no_grad()
def compute_mean_loss(
    model: GPT, source: Source, sequences: int, B: int, amp: Amp, stop: Callable[[], bool] = lambda: False
) -> float | None:
    """Return the mean loss per target over the first `sequences`, in nats, or None if stopped."""
    total, targets = torch.zeros((), device=model.device), 0
    for batch in draw_batches(source, sequences, B):
        if stop():
            return None
        require_ids(batch, model.cfg.V)
        with amp():
            total += model.loss(batch.x.to(model.device), batch.y.to(model.device), 1.0)
        targets += int((batch.y != IGNORE).sum())
    return total.item() / targets


def fit_unigram_baseline(
    train: Source, val: Sequence[ValSource], token_bytes: Sequence[int], B: int
) -> UnigramBaseline:
    """Fit a unigram model to the training targets and evaluate it on the validation sequences.

    Raises:
        DataError: the validation targets stand for no byte of text.
    """
    V = len(token_bytes)
    seen = _counts(train, UNIGRAM_SEQUENCES, V, B) + 1.0  # add-one smoothing
    surprise = -(seen / seen.sum()).log()  # nats, (V)
    counts = [_counts(part.source, part.sequences, V, B) for part in val]

    def mean(values: Tensor) -> float:  # of `values` by id, over the targets of each source by its share
        return sum(part.share * float((n * values).sum() / n.sum()) for part, n in zip(val, counts, strict=True))

    bytes_per_target = mean(torch.tensor(token_bytes, dtype=torch.float64))  # noqa: TID251  on the CPU
    if not bytes_per_target:
        targets, sequences = sum(int(n.sum()) for n in counts), sum(part.sequences for part in val)
        raise DataError(
            f"the {targets} targets in {sequences} validation sequences stand for no byte of text",
            "raise train.eval_sequences or model.T, or use longer texts",
        )
    return UnigramBaseline(mean(surprise), bytes_per_target)


def _counts(source: Source, sequences: int, V: int, B: int) -> Tensor:
    """Return how often each id is a target, (V), float64."""
    counts = torch.zeros(V, dtype=torch.float64)  # noqa: TID251  on the CPU
    for _, y in draw_batches(source, sequences, B):
        counts += torch.bincount(y[y != IGNORE], minlength=V)
    return counts
