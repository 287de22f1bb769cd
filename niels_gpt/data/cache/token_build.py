"""Tokenize a source into token files: in batches, with what is done saved, and sorted at the end."""

import hashlib
import logging
import os
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from math import ceil
from pathlib import Path
from sys import maxsize
from types import SimpleNamespace
from typing import Any, Literal, cast, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from niels_gpt.config import SourceCfg
from niels_gpt.data.cache.progress import show_progress
from niels_gpt.data.cache.token_files import META_FILE, get_dtypes, write_meta
from niels_gpt.data.chat_template import encode_dialogue
from niels_gpt.data.readers.records import Document
from niels_gpt.data.sources import Want, describe, encode_content, list_texts
from niels_gpt.data.validation_split import Record, Split, SplitPlan, read_split
from niels_gpt.storage import add_file_name, flush_to_disk, replace_atomically, write_text
from niels_gpt.tokenizer import END_OF_TEXT, Tokenizer
from niels_gpt.untrusted import read_text

FORMAT = 5
PROGRESS_FILE = "progress.json"
SAVE_EVERY = 10.0  # seconds, of which a kill loses the last
BUFFER = 1 << 22  # ids held in memory
BATCH = 1 << 20  # characters encoded at once; the library needs some 30 bytes for each
CHUNK = 1 << 20  # bytes of an item in memory while items are sorted
ITEMS = 1 << 14  # whose places are in memory as Python's numbers
TYPECODES = {"uint16": "H", "uint32": "I", "uint8": "B", "int64": "q"}  # of the module array
SPLITS: tuple[Split, ...] = get_args(Split)
Column = Literal["ids", "target_mask", "ends", "keys"]  # of unsorted items
Keyed = tuple[Split, Record, int | None]  # the key that an item is sorted by, where it ends
log = logging.getLogger("niels_gpt")


class Progress(BaseModel):
    """How much of a source is in the unsorted files of a build: records, and what was counted on the way."""

    model_config = ConfigDict(strict=True)

    records: NonNegativeInt = 0
    counts: Counter[str] = Counter(left_out=0, continued=0, further_rows=0, cut_rows=0)
    sizes: dict[Split, dict[Column, NonNegativeInt]] = {}


def build_files(
    folder: Path, source: SourceCfg, want: Want, tokenizer: Tokenizer, plan: SplitPlan, limit: int
) -> None:
    """Write the token files into a temporary folder, then rename it to `folder`; go on where a kill ended it."""
    with replace_atomically(folder, resume=True) as part:
        if not (part / META_FILE).exists():  # else the build came to its end
            _tokenize(part, folder.name, source, want, tokenizer, plan, limit)
        for path in (part / PROGRESS_FILE, *part.glob("unsorted-*")):
            path.unlink(missing_ok=True)


def _tokenize(
    part: Path, name: str, source: SourceCfg, want: Want, tokenizer: Tokenizer, plan: SplitPlan, limit: int
) -> None:
    progress, task, began = _read_progress(part), f"tokenizing {source.label}", time.monotonic()
    rest = ", going on where an earlier build ended" if progress.records else ""
    log.info("data: %s, %s: %d, %.1f MB%s", task, want, plan.records, plan.size / 1e6, rest)
    writers = {split: TokenWriter(part, split, tokenizer.V, progress.sizes.get(split, {})) for split in SPLITS}
    counts, budgets, saved = progress.counts, _list_budgets(source, plan), began

    def save() -> None:
        nonlocal saved
        progress.sizes = {split: writer.flush() for split, writer in writers.items()}
        write_text(part / PROGRESS_FILE, progress.model_dump_json())
        saved = time.monotonic()

    with show_progress(task, plan.size) as advance:
        items = islice(_read_keyed(source, want, plan, advance), progress.records, None)
        for (split, record, key), encoded in _encode_batches(items, tokenizer):
            full = {split for split, writer in writers.items() if writer.total >= budgets[split]}
            if full == {*SPLITS}:
                break
            progress.records += 1
            if split in full:
                continue
            if isinstance(record, Document):
                room = budgets[split] - writers[split].total
                writers[split].add(encoded.encode(record.text)[:room], [], None)
                if record.ends or writers[split].total >= budgets[split]:
                    writers[split].add([tokenizer.special[END_OF_TEXT]], [], key or 0)
            else:
                rows = encode_dialogue(record.messages, encoded, limit, source.learn)
                for row in rows:
                    writers[split].add(row.ids, row.target_mask, key)
                more, cut = len(rows[1:]), sum(row.cut for row in rows)
                counts.update(left_out=not rows, continued=more > 0, further_rows=more, cut_rows=cut)
            if split == "train" and writers[split].total >= budgets[split]:
                log.info("data: %s stops at data.max_tokens=%d of training", source.label, source.max_tokens)
            if time.monotonic() - saved > SAVE_EVERY or len(writers[split].buffers["ids"]) >= BUFFER:
                save()
    save()
    meta = {
        "format": FORMAT,
        "folder": name,
        "source": describe(source),
        "tokenizer_sha256": tokenizer.hash(),
        "content_sha256": plan.content_sha256,
        "records": plan.records,
        "dialogues": dict(counts),
        "splits": {split: writer.write_sorted() for split, writer in writers.items()},
    }
    write_meta(part, meta)
    seconds = time.monotonic() - began
    log.info("data: tokenized %s in %.0f s, %.1f MB/s", source.label, seconds, plan.size / 1e6 / seconds)


def _list_budgets(source: SourceCfg, plan: SplitPlan) -> dict[Split, int]:
    """Return the most tokens of each split; of dialogues the last one stays whole."""
    if not source.max_tokens:
        return dict.fromkeys(SPLITS, maxsize)
    share = plan.val_fraction / (1 - plan.val_fraction)
    return {"train": source.max_tokens, "val": maxsize if source.held_out() else ceil(source.max_tokens * share)}


def _read_progress(part: Path) -> Progress:
    """Return how far a killed build came; nowhere if its files are damaged."""
    with suppress(OSError, ValueError):
        progress = Progress.model_validate_json(read_text(part / PROGRESS_FILE, 1 << 20))
        files = ((split, *entry) for split, sizes in progress.sizes.items() for entry in sizes.items())
        if all((part / f"unsorted-{split}.{name}").stat().st_size >= size for split, name, size in files):
            return progress
    return Progress()


def _read_keyed(source: SourceCfg, want: Want, plan: SplitPlan, advance: Callable[[int], None]) -> Iterator[Keyed]:
    """Yield the records of a source; keys are hashes of content: names and order of files make no difference."""
    from_files = source.kind not in ("pydocs", "synthetic")  # which always keep one order
    hashes = {split: hashlib.sha256() for split in SPLITS}
    for split, record in read_split(source, want, plan):
        content, key = encode_content(record), None
        advance(len(content))
        if from_files:
            hashes[split].update(content)
        if not isinstance(record, Document) or record.ends:
            key = int.from_bytes(hashes[split].digest()[:8], "little", signed=True)
            hashes[split] = hashlib.sha256()
        yield split, record, key


def _encode_batches(items: Iterator[Keyed], tokenizer: Tokenizer) -> Iterator[tuple[Keyed, Tokenizer]]:
    """Yield each item with a stand-in for the tokenizer, which has the ids of its texts.

    A batch is encoded while the next one is read.
    """

    def encode(batch: list[Keyed]) -> list[tuple[Keyed, Tokenizer]]:
        texts = [text for _, record, _ in batch for text in list_texts(record)]
        ids = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
        encoded = cast(Tokenizer, SimpleNamespace(special=tokenizer.special, encode=ids.__getitem__))
        return [(item, encoded) for item in batch]

    with ThreadPoolExecutor(1) as executor:
        running: deque[Future[list[tuple[Keyed, Tokenizer]]]] = deque()
        for batch in _cut_batches(items):
            running.append(executor.submit(encode, batch))
            if len(running) == 2:
                yield from running.popleft().result()
        yield from running.popleft().result()


def _cut_batches(items: Iterator[Keyed]) -> Iterator[list[Keyed]]:
    batch: list[Keyed] = []
    size = 0
    for item in items:
        batch.append(item)
        size += sum(map(len, list_texts(item[1])))
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


class TokenWriter:
    """Append the items of one split to unsorted files; an item is a document, or a dialogue.

    The column `ends` has the number of ids up to the end of each item, `keys` the hash that it is sorted by.
    """

    def __init__(self, folder: Path, split: str, V: int, sizes: dict[Column, int]) -> None:
        """Go on after these `sizes` of the files, in bytes; a killed process may have written more."""
        self.folder, self.split, self.dtypes = folder, split, get_dtypes(V)
        typecodes = {column: TYPECODES[self.dtypes.get(column, "int64")] for column in get_args(Column)}
        self.buffers: dict[Column, array[int]] = {column: array(code) for column, code in typecodes.items()}
        self.sizes: dict[Column, int] = dict.fromkeys(self.buffers, 0) | sizes
        for column, size in self.sizes.items():
            with self._path(column).open("ab") as file:
                file.truncate(size)

    def _path(self, column: Column) -> Path:
        return self.folder / f"unsorted-{self.split}.{column}"

    @property
    def total(self) -> int:
        """Ids so far."""
        return self.sizes["ids"] // self.buffers["ids"].itemsize + len(self.buffers["ids"])

    def add(self, ids: Iterable[int], target_mask: Iterable[int], key: int | None) -> None:
        """Add an item, or a section of one, which has no key unless the item ends with it."""
        self.buffers["ids"].extend(ids)
        self.buffers["target_mask"].extend(target_mask)
        if key is not None:
            self.buffers["ends"].append(self.total)
            self.buffers["keys"].append(key)

    def flush(self) -> dict[Column, int]:
        """Put the buffers on disk and return the sizes of the files."""
        for column, buffer in self.buffers.items():
            with add_file_name(self._path(column)), self._path(column).open("ab") as file:
                file.write(buffer)
                file.flush()
                flush_to_disk(file.fileno())
            self.sizes[column] += len(buffer) * buffer.itemsize
            del buffer[:]
        return self.sizes

    def write_sorted(self) -> dict[str, Any]:
        """Write the items again, in the order of their keys, and return the files' entry in meta.json."""
        order = np.fromfile(self._path("keys"), np.int64).argsort(kind="stable")
        starts = np.fromfile(self._path("ends"), np.int64)
        lengths = np.diff(starts, prepend=0)
        starts -= lengths  # in place, like all that may be millions of numbers
        starts = starts[order]
        lengths = lengths[order]
        del order
        offsets = np.zeros(len(lengths) + 1, np.int64)
        lengths.cumsum(out=offsets[1:])
        columns: tuple[Column, ...] = ("ids", "target_mask")
        written = {column: self._write(column, self._read_items(column, starts, lengths)) for column in columns}
        parts = (offsets[n : n + ITEMS].tobytes() for n in range(0, len(offsets), ITEMS))
        return written | {"offsets": self._write("offsets", parts)}

    def _read_items(self, column: Column, starts: Any, lengths: Any) -> Iterator[bytes]:
        """Yield the bytes of the items. They are read, not mapped: mapped pages would count as memory in use."""
        width = self.buffers[column].itemsize
        with self._path(column).open("rb") as file:
            for n in range(0, len(starts) if self.sizes[column] else 0, ITEMS):
                places = ((part[n : n + ITEMS] * width).tolist() for part in (starts, lengths))
                for start, length in zip(*places, strict=True):
                    for at in range(start, start + length, CHUNK):
                        yield os.pread(file.fileno(), min(CHUNK, start + length - at), at)

    def _write(self, column: str, parts: Iterable[bytes]) -> dict[str, Any]:
        path, dtype, sha256 = self.folder / f"{self.split}.{column}", self.dtypes[column], hashlib.sha256()
        with add_file_name(path), path.open("wb", CHUNK) as file:
            for part in parts:
                file.write(part)
                sha256.update(part)
            file.flush()
            flush_to_disk(file.fileno())
        count = path.stat().st_size // np.dtype(dtype).itemsize
        return {"dtype": dtype, "count": count, "sha256": sha256.hexdigest()}
