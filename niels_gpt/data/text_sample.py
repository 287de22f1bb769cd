"""Draw the text that a tokenizer learns from."""

import re
from collections.abc import Iterable

from niels_gpt.seeds import derive_seed
from niels_gpt.tokenizer import PIECE

LONG_WORD = re.compile(r"\b\w{32,}")  # such as DNA: seldom repeated, so each takes memory and time of its own
LONG_WORD_COST = 16  # bytes of the sample that one byte of such a word counts as


def sample_texts(texts: Iterable[str], max_bytes: int) -> list[str]:
    """Return the texts in pieces: all, or as many as `max_bytes` hold, drawn evenly from all by their number."""
    kept: list[tuple[int, int, str]] = []  # a number drawn for the piece, its cost, and the piece
    below, total = 1 << 63, 0
    for number, piece in enumerate(piece for text in texts for piece in PIECE.findall(text)):
        if (drawn := derive_seed("tokenizer", number)) < below:
            long = "".join(LONG_WORD.findall(piece))
            cost = len((piece + long * (LONG_WORD_COST - 1)).encode("utf-8", "surrogatepass"))
            kept.append((drawn, cost, piece))
            total += cost
        while total > max_bytes:
            below = below * 9 // 10
            kept = [entry for entry in kept if entry[0] < below]
            total = sum(cost for _, cost, _ in kept)
    return [piece for _, _, piece in kept]
