"""Read text to score: documents in blocks or sliding windows, and dialogues."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from niels_gpt.config import SourceCfg
from niels_gpt.data.chat_template import encode_dialogue
from niels_gpt.data.readers.records import Dialogue, Document
from niels_gpt.data.readers.tables import JSON, get_format
from niels_gpt.data.sources import list_texts, read_records
from niels_gpt.errors import DataError
from niels_gpt.evaluation.estimates import count_clusters
from niels_gpt.evaluation.scoring import NO_TARGET, Window
from niels_gpt.tokenizer import END_OF_TEXT, Tokenizer

PIECE = 4096  # bytes
MIN_DOCUMENTS = 20  # of equal size; fewer say too little about how documents differ
LIMIT = 1 << 28  # bytes of text, which is kept in memory


class TextSet(NamedTuple):
    """Text to score, with `size` bytes of targets. `cut` makes windows for a tokenizer and a context of T tokens.

    The number of units, and the text of each, are the same for all tokenizers.
    """

    name: str
    about: str
    cut: Callable[[Tokenizer, int], Iterator[Window]]
    units: int
    size: int


def open_documents(files: Sequence[str], stride: int | None = None) -> TextSet:
    """Return the documents in paths, folders or globs, to score in blocks of T or windows that slide by `stride`.

    Each is a unit; if there are few, or a few long ones, so is each piece of PIECE bytes. DataError if there is no
    text, too much of it, or a file that cannot be used.
    """
    records, sizes = [], [0]
    for kind in ("text", "jsonl"):
        chosen = tuple(name for name in files if (get_format(name) in JSON) == (kind == "jsonl"))
        for record in _read_files(chosen, "--files", kind=kind, want="documents") if chosen else ():
            records.append(record)
            sizes[-1] += len(record.text.encode())
            sizes += [0] * record.ends
    sizes = _require_text(sizes[:-1], "documents", files)
    piece = max(sizes) if count_clusters(np.array(sizes, float)) >= MIN_DOCUMENTS else PIECE
    units = sum(math.ceil(size / piece) for size in sizes)
    about = f"documents: {len(sizes):,}, bytes: {sum(sizes):,}"
    about += f", pieces of {PIECE:,} bytes: {units:,}" if piece == PIECE else ""

    def cut(tokenizer: Tokenizer, T: int) -> Iterator[Window]:
        return cut_documents(records, tokenizer, T, stride or T, piece)

    return TextSet(" ".join(files), about, cut, units, sum(sizes))


def open_dialogues(files: Sequence[str]) -> TextSet:
    """Return the dialogues in files of rows; each is a unit. DataError as for `open_documents`."""
    dialogues = [*_read_files(tuple(files), "--chat", kind="jsonl", want="dialogues")]
    return make_dialogue_set(" ".join(files), f"dialogues: {len(dialogues):,}", dialogues)


def make_dialogue_set(name: str, about: str, dialogues: Sequence[Dialogue]) -> TextSet:
    """Return a set with a unit for each dialogue. DataError if none has an answer to learn."""
    answers = [[m.content for m in d.messages if m.role == "assistant" and m.learn] for d in dialogues]
    sizes = _require_text([len("".join(texts).encode()) for texts in answers], "answers to learn", [name])
    return TextSet(name, about, lambda *fit: cut_dialogues(dialogues, *fit), len(sizes), sum(sizes))


def cut_documents(
    records: Iterable[Document], tokenizer: Tokenizer, T: int, stride: int, piece: int
) -> Iterator[Window]:
    """Yield windows of documents, each from END_OF_TEXT on, which is no target.

    Every token is a target once. In all windows of a document but the first, the targets are the last `stride`
    tokens, each after at least T - stride others (https://huggingface.co/docs/transformers/perplexity). A token
    counts for the piece, of `piece` bytes, in which it begins.
    """
    sizes, start = np.array(tokenizer.token_bytes()), np.array([tokenizer.special[END_OF_TEXT]])
    ids, units, offset, first = start, np.array([NO_TARGET]), 0, 0
    for record in records:
        new = np.array(tokenizer.encode(record.text))
        ends = offset + sizes[new].cumsum()
        ids = np.concatenate([ids, new])
        units = np.concatenate([units, first + (ends - sizes[new]) // piece])
        offset = int(ends[-1])
        while len(ids) > T + 1:
            yield Window(ids[: T + 1], units[: T + 1].copy())
            units[: T + 1] = NO_TARGET
            ids, units = ids[stride:], units[stride:]
        if record.ends:
            yield Window(ids, units)
            first += math.ceil(offset / piece)
            ids, units, offset = start, np.array([NO_TARGET]), 0


def cut_dialogues(dialogues: Iterable[Dialogue], tokenizer: Tokenizer, T: int) -> Iterator[Window]:
    """Yield the items of dialogues as in SFT: the targets are the assistant's words and ends of turn."""
    for unit, dialogue in enumerate(dialogues):
        words = [tokenizer.encode(message.content) for message in dialogue.messages]
        for item in encode_dialogue(dialogue.messages, words, tokenizer, T + 1):
            yield Window(np.array(item.ids), np.where(item.target_mask, unit, NO_TARGET))


def _read_files(files: tuple[str, ...], flag: str, *, kind: Any, want: Any) -> Iterator[Any]:
    """Yield the records of files; an error names the flag instead of the setting."""
    size = 0
    try:
        for record in read_records(SourceCfg.model_construct(kind=kind, files=files), want):
            yield record
            if (size := size + sum(map(len, list_texts(record)))) > LIMIT:
                raise DataError(f"{' '.join(files):.300}: more than {LIMIT >> 20} MiB of text", "name fewer files")
    except DataError as error:
        hint = re.sub("use data=hf .*", "give text, or rows of JSON", error.hint)
        hint = re.sub(", or set data.on_bad_line=skip|for data=text, ", "", hint)
        raise DataError(*(text.replace("data.files", flag) for text in (str(error), hint))) from None


def _require_text(sizes: list[int], what: str, files: Sequence[str]) -> list[int]:
    if not sum(sizes):
        raise DataError(f"{' '.join(files):.300}: no {what}", "--files is for text, --chat for dialogues in JSON")
    return sizes
