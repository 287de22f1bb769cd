"""Score text: the loss of each target, summed by unit, such as a piece of a document, a dialogue or an answer.

Shapes: B windows of n ids, U units, V ids of the tokenizer.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import END_OF_TURN, Tokenizer

NO_TARGET = -1
BATCH = 4096  # tokens in a batch, less for a large vocabulary: of LOGITS numbers
LOGITS = 1 << 26
SORTED = 512  # windows that are sorted by length at a time
Sums = NDArray[np.float64]
COLUMNS = NATS, TOKENS, BYTES, MISSES, ENDS = range(5)


class Window(NamedTuple):
    """At most T + 1 ids that a model sees at once, and for each the unit that it counts for, or NO_TARGET."""

    ids: NDArray[np.int64]
    units: NDArray[np.int64]


@torch.no_grad()
def score_windows(
    model: GPT,
    tokenizer: Tokenizer,
    windows: Iterable[Window],
    units: int,
    *,
    batch: int = BATCH,
    advance: Callable[[int], object] = lambda size: None,
) -> Sums:
    """Return sums over the targets of each unit, (U, 5): a column each for NATS to ENDS.

    TOKENS counts targets, BYTES their text, MISSES those that are not the likeliest id, and ENDS the ends of turn.
    `advance` is told the bytes of each batch. The model is left in eval mode.
    """
    model.eval()
    sums, sizes = np.zeros((units, len(COLUMNS))), torch.tensor(tokenizer.token_bytes())
    for part in _batch_windows(windows, min(batch, LOGITS // tokenizer.V)):
        ids = pad_sequence([torch.from_numpy(window.ids) for window in part], True)  # (B, n)
        unit = pad_sequence([torch.from_numpy(window.units) for window in part], True, NO_TARGET)[:, 1:]
        logits, targets = model(ids[:, :-1].to(model.device)).cpu(), ids[:, 1:]  # (B, n-1, V), (B, n-1)
        nats = [F.cross_entropy(*row, reduction="none") for row in zip(logits, targets, strict=True)]
        misses = logits.argmax(-1) != targets
        ends = targets == tokenizer.special[END_OF_TURN]
        columns = torch.stack([torch.stack(nats), torch.ones_like(targets), sizes[targets], misses, ends], -1)
        is_target = unit != NO_TARGET
        np.add.at(sums, unit[is_target].numpy(), columns[is_target].double().numpy())
        advance(int(sizes[targets[is_target]].sum()))
    return sums


def _batch_windows(windows: Iterable[Window], tokens: int) -> Iterator[list[Window]]:
    """Yield windows of about the same length together, of at most `tokens` with padding if there are several."""
    remaining = iter(windows)
    while group := sorted(islice(remaining, SORTED), key=lambda window: -len(window.ids)):
        while group:
            count = max(1, tokens // len(group[0].ids))
            yield group[:count]
            del group[:count]
