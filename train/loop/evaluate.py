"""Compute the validation loss on the same sequences every time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from niels_gpt.data.batches import Batch, Source, require_valid_ids
from niels_gpt.loss import IGNORE
from niels_gpt.model.gpt import GPT
from train.loop.amp import Amp


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
