"""Build a byte-level BPE from a tokenizer.json of Hugging Face's tokenizers; the file is untrusted."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tokenizers

from niels_gpt.errors import first_line

DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def build_bpe(settings: Any) -> tokenizers.Tokenizer:
    """Return the library's tokenizer with the ids of the file, without dropout, templates, padding and the like.

    ValueError if it is another kind. It may still change a text: compare what it encodes.
    """
    match settings:
        case {"model": {"type": kind}} if kind != "BPE":
            raise ValueError(f"its model is {kind!s:.60}, not BPE")
        case {"normalizer": normalizer} if normalizer:
            raise ValueError(f"it has a normalizer, {normalizer!s:.60}")
        case {"model": {"continuing_subword_prefix": prefix}} if prefix:  # the library could panic
            raise ValueError(f"its model has a continuing_subword_prefix, {prefix!s:.60}")
        case {"model": {"vocab": dict(vocab)} as model, "added_tokens": list(added)}:
            model = model | {"type": "BPE", "dropout": None}
        case _:
            raise ValueError("it lacks a vocab, or added_tokens")
    pre_tokenizer = settings.get("pre_tokenizer")
    parts = {"model": model, "pre_tokenizer": pre_tokenizer, "added_tokens": added, "decoder": DECODER}
    with convert_library_errors():
        bpe = tokenizers.Tokenizer.from_str(json.dumps(parts))
    ids = vocab | {token["content"]: token["id"] for token in added}
    if bpe.get_vocab() != ids or sorted(ids.values()) != [*range(len(ids))]:
        raise ValueError("its ids do not count from 0, or its added tokens do not follow the others")
    return bpe


@contextmanager
def convert_library_errors() -> Iterator[None]:
    """Raise ValueError for the library's errors: Exception, or a panic in Rust, such as of a regex."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(first_line(error).split(" at line ")[0]) from error


def map_symbols() -> dict[str, int]:
    """Return the byte that each symbol of byte-level BPE stands for.

    As in GPT-2: a printable byte is its Latin-1 character, the others follow in order from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}
