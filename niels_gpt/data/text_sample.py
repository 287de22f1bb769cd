"""Draw the text that a tokenizer learns from."""

import re
from collections.abc import Iterable

from niels_gpt.seeds import derive_seed

# Pieces end before a space, where the tokenizer splits anyway, so that they teach the same as the whole text.
PIECE = re.compile(r"(?s).{4095,8191}?\w(?=[ \n])|.{1,8192}")


def sample_texts(texts: Iterable[str], max_bytes: int) -> list[str]:
    """Return the texts in pieces: all, or as many as `max_bytes` hold, drawn evenly from all by their number."""
    kept: list[tuple[int, int, str]] = []  # a number drawn for the piece, its size in bytes, and the piece
    below, total = 1 << 63, 0
    for number, piece in enumerate(piece for text in texts for piece in PIECE.findall(text)):
        drawn, size = derive_seed("tokenizer", number), len(piece.encode("utf-8", "surrogatepass"))
        if drawn < below:
            kept.append((drawn, size, piece))
            total += size
        while total > max_bytes:
            below = below * 9 // 10
            kept = [entry for entry in kept if entry[0] < below]
            total = sum(size for _, size, _ in kept)
    return [piece for _, _, piece in kept]
