"""Tokenize a source into token files: in batches, with what is done saved, and sorted at the end."""

import hashlib
import logging
import os
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice, pairwise
from math import ceil
from pathlib import Path
from sys import maxsize
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt
from rich.filesize import decimal

from niels_gpt.config import SourceCfg
from niels_gpt.data.cache.progress import show_progress
from niels_gpt.data.cache.token_files import META_FILE, get_dtypes, write_meta
from niels_gpt.data.chat_template import encode_dialogue
from niels_gpt.data.readers.records import Document
from niels_gpt.data.sources import Want, describe, encode_content, list_texts
from niels_gpt.data.validation_split import Record, Split, SplitPlan, read_split
from niels_gpt.printable import format_count
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
SPLITS: tuple[Split, ...] = get_args(Split)
Column = Literal["ids", "target_mask", "ends", "keys"]  # of unsorted items
Keyed = tuple[Split, Record, int | None]  # the key that its items are sorted by, where it ends
Encoded = tuple[Keyed, list[Sequence[int]]]  # the ids of each text of the record
log = logging.getLogger("niels_gpt")


class Progress(BaseModel):
    """How much of a source is in the unsorted files of a build: records, and what was counted on the way."""

    model_config = ConfigDict(strict=True)

    records: NonNegativeInt = 0
    counts: Counter[str] = Counter(left_out=0, continued=0, further_items=0, cut_items=0)
    sizes: dict[Split, dict[Column, NonNegativeInt]] = {}


def build_files(
    folder: Path, source: SourceCfg, want: Want, tokenizer: Tokenizer, plan: SplitPlan, limit: int
) -> None:
    """Write the token files into a temporary folder, then rename it to `folder`; go on where a kill ended it."""
    with replace_atomically(folder, resume=True) as part:
        if not (part / META_FILE).exists():  # else the build came to its end
            write_meta(part, {"folder": folder.name} | _tokenize(part, source, want, tokenizer, plan, limit))
        for path in (part / PROGRESS_FILE, *part.glob("unsorted-*")):
            path.unlink(missing_ok=True)


def _tokenize(
    part: Path, source: SourceCfg, want: Want, tokenizer: Tokenizer, plan: SplitPlan, limit: int
) -> dict[str, Any]:
    """Write the files into `part`, and return the content of meta.json."""
    progress, task = _read_progress(part), f"tokenizing {source.label}"
    rest = ", going on where an earlier build ended" if progress.records else ""
    log.info("data: %s: %s, %s%s", task, format_count(plan.records, want[:-1]), decimal(plan.size), rest)
    budgets = _list_budgets(source, plan)
    writers = {
        split: TokenWriter(part, split, tokenizer.V, budgets[split], progress.sizes.get(split, {}))
        for split in SPLITS
    }

    def save() -> None:
        progress.sizes = {split: writer.flush() for split, writer in writers.items()}
        write_text(part / PROGRESS_FILE, progress.model_dump_json())

    with show_progress(task, plan.size) as advance:
        records = _read_keyed(source, want, plan, advance)
        done = sum(len(encode_content(record)) for _, record, _ in islice(records, progress.records))
        began = saved = time.monotonic()
        for (split, record, key), texts in _encode_batches(records, tokenizer):
            if all(writer.room <= 0 for writer in writers.values()):
                break
            progress.records += 1
            writer = writers[split]
            if writer.room <= 0:
                continue
            if isinstance(record, Document):
                writer.add(texts[0][: writer.room], [], None)
                if record.ends or writer.room <= 0:
                    writer.add([tokenizer.special[END_OF_TEXT]], [], key or 0)
            else:
                items = encode_dialogue(record.messages, texts, tokenizer, limit, source.learn)
                for item in items:
                    writer.add(item.ids, item.target_mask, key)
                more, cut = len(items[1:]), sum(item.cut for item in items)
                progress.counts.update(left_out=not items, continued=more > 0, further_items=more, cut_items=cut)
            if split == "train" and writer.room <= 0:
                log.info("data: %s stops at data.max_tokens=%d of training", source.label, source.max_tokens)
            if time.monotonic() - saved > SAVE_EVERY or len(writer.buffers["ids"]) >= BUFFER:
                save()
                saved = time.monotonic()
    save()
    splits = {split: writer.write_sorted() for split, writer in writers.items()}
    seconds = time.monotonic() - began
    speed = decimal(int((plan.size - done) / seconds))
    log.info("data: tokenized %s in %.0f s, %s/s", source.label, seconds, speed)
    return {
        "format": FORMAT,
        "source": describe(source),
        "tokenizer_sha256": tokenizer.hash(),
        "content_sha256": plan.content_sha256,
        "records": plan.records,
        "dialogues": dict(progress.counts),
        "splits": splits,
    }


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


def _encode_batches(records: Iterator[Keyed], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Yield each record with the ids of its texts. A batch is encoded while the next one is read."""

    def encode(batch: list[Keyed]) -> list[Encoded]:
        texts = [list_texts(record) for _, record, _ in batch]
        ids = iter(tokenizer.encode_batch([*chain.from_iterable(texts)]))
        return [(keyed, [*islice(ids, len(own))]) for keyed, own in zip(batch, texts, strict=True)]

    with ThreadPoolExecutor(1) as executor:
        futures = (executor.submit(encode, batch) for batch in _cut_batches(records))
        for encoded, _ in pairwise(chain(futures, [Future[list[Encoded]]()])):  # submits the next one, then waits
            yield from encoded.result()


def _cut_batches(records: Iterator[Keyed]) -> Iterator[list[Keyed]]:
    batch: list[Keyed] = []
    size = 0
    for keyed in records:
        batch.append(keyed)
        size += sum(map(len, list_texts(keyed[1])))
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


class TokenWriter:
    """Append the items of one split to unsorted files, up to a budget of tokens.

    The column `ends` has the number of ids up to the end of each item, `keys` the hash that it is sorted by.
    """

    def __init__(self, folder: Path, split: Split, V: int, budget: int, sizes: dict[Column, int]) -> None:
        """Go on after these `sizes` of the files, in bytes; a killed process may have written more."""
        self.folder, self.split, self.budget, self.dtypes = folder, split, budget, get_dtypes(V)
        self.buffers: dict[Column, array[int]] = {
            column: array(np.dtype(self.dtypes.get(column, "int64")).char) for column in get_args(Column)
        }
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

    @property
    def room(self) -> int:
        """Tokens left of the budget; less than 0 if a dialogue went beyond."""
        return self.budget - self.total

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
