"""Make (B, T) batches from token files; each sequence is a function of (seed, number) alone.

Batches are made from mapped files in the training process: mps does not work with fork or DataLoader workers.

Shapes: N sequences of T tokens.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from niels_gpt.data.cache.token_files import FIND_DAMAGE, TokenFiles
from niels_gpt.errors import DataError
from niels_gpt.loss import IGNORE
from niels_gpt.seeds import derive_seed

MIXTURE_PERIOD = 1024  # sequences over which the weights of a mixture are exact to rounding


class Batch(NamedTuple):
    """x (N, T) token ids; y (N, T) the ids that follow, IGNORE if not a target; all int64.

    `segments` (N, T) number the dialogue or document of each position; None if attention sees the whole sequence.
    """

    x: Tensor
    y: Tensor
    segments: Tensor | None = None

    def split(self, count: int) -> list["Batch"]:
        """Return microbatches of `count` sequences."""
        firsts = range(0, len(self.x), count)
        return [self._map(itemgetter(slice(first, first + count))) for first in firsts]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return self._map(lambda column: column.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        segments = None if self.segments is None else change(self.segments)
        return Batch(change(self.x), change(self.y), segments)


def require_valid_ids(batch: Batch, V: int) -> None:
    """Raise DataError unless all ids are in 0 .. V-1. Checked on the CPU: mps would accept others silently."""
    low, high = int(batch.x.min()), int(torch.maximum(batch.x.max(), batch.y.max()))
    if low < 0 or high >= V:
        raise DataError(f"token ids {low} .. {high} in a batch, but model.V={V}", FIND_DAMAGE)


class Source(Protocol):
    """An endless, numbered series of sequences."""

    def draw(self, first: int, count: int) -> Batch:
        """Return sequences first .. first + count - 1: a pure function of the numbers."""

    def __len__(self) -> int:
        """Return the number of sequences in an epoch."""


class EpochOrder:
    """Visit each of `count` sequences once an epoch, in an order drawn from (seed, epoch)."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._get_order = lru_cache(maxsize=2)(self._draw_order)  # a batch rarely spans more than two epochs

    def find_indices(self, first: int, count: int) -> Tensor:
        """Return the indices, 0 .. self.count - 1, of draws first .. first + count - 1, shape (count,)."""
        numbers = torch.arange(first, first + count)
        epochs = numbers // self.count
        return torch.cat([self._get_order(e)[numbers[epochs == e] % self.count] for e in epochs.unique().tolist()])

    def _draw_order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed("epoch", self.seed, epoch))
        return torch.randperm(self.count, generator=generator)


class TokenStream:
    """Documents concatenated and cut into sequences of T tokens; every next token is a target."""

    def __init__(self, files: TokenFiles, T: int, seed: int, *, isolate: bool = False) -> None:
        self.ids, self.T = files.ids, T
        self.ends = files.offsets[1:] if isolate else None
        count = (len(self.ids) - 1) // T
        if count < 1:
            raise DataError(
                f"the text has {len(self.ids)} tokens, but a sequence and its targets need T+1={T + 1}",
                "add more text, change data.val_fraction or lower model.T",
            )
        self.order = EpochOrder(count, seed)

    def __len__(self) -> int:
        return self.order.count

    def draw(self, first: int, count: int) -> Batch:
        """Return sequences first .. first + count - 1."""
        offsets = self.order.find_indices(first, count) * self.T
        places = offsets[:, None] + torch.arange(self.T + 1)  # (N, T+1)
        tokens = self.ids[places].long()
        segments = None
        if self.ends is not None:  # that of its target: END_OF_TEXT begins the next document, as in generation
            segments = torch.searchsorted(self.ends, places[:, :-1] + 1, right=True)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), segments)


class ChatStream:
    """Dialogues, whole or in items, packed into sequences of T tokens; the targets are the assistant's words."""

    def __init__(self, files: TokenFiles, T: int, seed: int, *, isolate: bool = False) -> None:
        self.files, self.T, self.isolate = files, T, isolate
        if len(files.offsets) < 2:
            raise DataError("there are no dialogues to train on", "add dialogues with an answer to learn")
        self.items, self.begins = pack_sequences(files.offsets.diff(), T + 1)
        self.order = EpochOrder(len(self.begins) - 1, seed)

    def __len__(self) -> int:
        return self.order.count

    def draw(self, first: int, count: int) -> Batch:
        """Return sequences first .. first + count - 1; padding after the dialogues is id 0 and never a target."""
        x = torch.zeros(count, self.T + 1, dtype=torch.int64)
        y, segments = torch.full_like(x, IGNORE), torch.zeros_like(x)
        for n, index in enumerate(self.order.find_indices(first, count).tolist()):
            at = 0
            items = self.items[self.begins[index] : self.begins[index + 1]]
            for number, item in enumerate(items.tolist(), 1):
                start, end = self.files.offsets[item : item + 2].tolist()
                ids = self.files.ids[start:end].long()
                x[n, at : at + len(ids)] = ids
                y[n, at : at + len(ids)] = ids.where(self.files.target_mask[start:end].bool(), IGNORE)
                segments[n, at : at + len(ids)] = number
                at += len(ids)
        isolated = segments[:, :-1].contiguous() if self.isolate else None
        return Batch(x[:, :-1].contiguous(), y[:, 1:].contiguous(), isolated)


def pack_sequences(lengths: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Return the items (N,) sequence by sequence, and where each begins and the last one ends (sequences + 1,).

    The longest item left that fits joins a sequence, until none fits into its `room` tokens. Sequences of the same
    lengths are made at once (first-fit decreasing, on a histogram as in Krell et al., 2021).
    """
    sizes, counts = (column.tolist() for column in lengths.unique(return_counts=True))
    left = dict(zip(sizes, lengths.argsort(stable=True).split(counts), strict=True))  # items of each length
    packed, item_counts = [], [torch.zeros(1, dtype=torch.int64)]
    while sizes:
        taken: dict[int, int] = {}  # items of each length, for a sequence
        space, at = room, len(sizes)
        while at := bisect_right(sizes, space, 0, at):
            at -= 1
            size = sizes[at]
            taken[size] = min(space // size, len(left[size]))
            space -= size * taken[size]
        alike = min(len(left[size]) // n for size, n in taken.items())
        columns = [left[size][: n * alike].view(alike, n) for size, n in reversed(taken.items())]
        packed.append(torch.cat(columns, 1).flatten())
        item_counts.append(torch.full((alike,), sum(taken.values())))
        for size, n in taken.items():
            left[size] = left[size][n * alike :]
        sizes = [size for size in sizes if len(left[size])]
    return torch.cat(packed), torch.cat(item_counts).cumsum(0)


class Mixture:
    """Several sources by weight: each has its share of every 1024 sequences, in a seeded order."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], seed: int) -> None:
        self.sources, self.seed = sources, seed
        bounds = [round(MIXTURE_PERIOD * sum(weights[: n + 1]) / sum(weights)) for n in range(len(weights))]
        self.shares = torch.tensor([after - before for before, after in zip([0, *bounds], bounds, strict=False)])
        self._slots = torch.repeat_interleave(torch.arange(len(sources)), self.shares)  # (MIXTURE_PERIOD)

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def draw(self, first: int, count: int) -> Batch:
        """Return sequences first .. first + count - 1."""
        drawn = [self._draw_sequence(number) for number in range(first, first + count)]
        x, y, *segments = (torch.cat(column) for column in zip(*drawn, strict=True) if column[0] is not None)
        return Batch(x, y, *segments)

    def _draw_sequence(self, number: int) -> Batch:
        period, place = divmod(number, MIXTURE_PERIOD)
        generator = torch.Generator().manual_seed(derive_seed("mixture", self.seed, period))
        slots = self._slots[torch.randperm(MIXTURE_PERIOD, generator=generator)]
        chosen = int(slots[place])
        before = int((slots[:place] == chosen).sum())
        return self.sources[chosen].draw(period * int(self.shares[chosen]) + before, 1)
