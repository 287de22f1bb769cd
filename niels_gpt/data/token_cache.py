"""Tokenize each source once and cache the result, built by one process at a time."""

import hashlib
import logging
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich import get_console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn, track

from niels_gpt.adopted_tokenizer import adopt_tokenizer
from niels_gpt.config import DataCfg, SourceCfg
from niels_gpt.data.chat_template import encode_dialogue
from niels_gpt.data.hash_index import HashIndex
from niels_gpt.data.readers.records import Document
from niels_gpt.data.sources import Want, describe, encode_content, fingerprint, list_texts, select_sources
from niels_gpt.data.text_sample import sample_texts
from niels_gpt.data.token_files import TokenCache, get_dtypes, read_meta, write_meta
from niels_gpt.data.validation_split import plan_split, read_split
from niels_gpt.errors import DataError
from niels_gpt.storage import add_file_name, flush_to_disk, replace_atomically, write_text
from niels_gpt.tokenizer import END_OF_TEXT, SPECIAL_TOKENS, BytesTokenizer, Tokenizer, load_tokenizer, train_bpe

FORMAT = 4
TYPECODES = {"uint16": "H", "uint32": "I", "uint8": "B", "int64": "q"}  # of the module array
CHUNK = 1 << 22  # ids written at a time
log = logging.getLogger("niels_gpt")


def build_tokenizer(cfg: DataCfg, want: Want, V: int) -> Tokenizer:
    """Return the tokenizer of this data: bytes, a file's, or BPE of V entries trained on the training split.

    DataError if the text gives fewer entries than V, or if a file cannot be used.
    """
    if cfg.tokenizer == "bytes":
        return BytesTokenizer()
    if cfg.tokenizer != "bpe":
        adopted, names = adopt_tokenizer(Path(cfg.tokenizer))
        new = ", ".join(token for token in SPECIAL_TOKENS if token not in names) or "none"
        parts = "; ".join([*(f"{token} is {name}" for token, name in names.items()), f"new: {new}"])
        log.info("tokenizer: %s has %d entries; %s", cfg.tokenizer, adopted.V, parts)
        return adopted
    sources = select_sources(cfg.mixture(), want)
    index = HashIndex(Path(cfg.cache_dir))
    key = hash_parts(
        [fingerprint(source, index) for source in sources], want, V, cfg.val_fraction, cfg.tokenizer_sample
    )
    index.save()
    path = Path(cfg.cache_dir) / f"tokenizer-{key}.json"
    hash_path = path.with_suffix(".sha256")  # a damaged tokenizer may still load, as another one
    with lock_build(path) as missing:
        if missing:
            texts = (text for source in sources for text in _read_training_texts(source, want, cfg.val_fraction))
            trained = _train_tokenizer(texts, V, cfg.tokenizer_sample)
            write_text(hash_path, trained.hash())  # first, because the build counts as done once `path` exists
            trained.save(path)
    _mark_used(path)
    hint = f"delete {path}; it will be retrained"
    try:
        tokenizer, expected = load_tokenizer(path), hash_path.read_bytes()
    except (DataError, OSError) as error:
        raise DataError(str(error), hint) from error
    if tokenizer.hash().encode() != expected:
        raise DataError(f"{path} is damaged: it is not the tokenizer that was trained", hint)
    return tokenizer


def _train_tokenizer(texts: Iterable[str], V: int, max_bytes: int) -> Tokenizer:
    console = get_console()
    columns = (SpinnerColumn(), "{task.description}", TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("tokenizer: reading the training split", total=None)
        sample = sample_texts(texts, max_bytes)
        megabytes = sum(len(text.encode("utf-8", "replace")) for text in sample) / 1e6
        what = f"tokenizer: training a BPE of {V} entries on {megabytes:.1f} MB of the training split"
        log.info(what)
        progress.update(task, description=what)
        return train_bpe(sample, V)


def open_cache(source: SourceCfg, want: Want, tokenizer: Tokenizer, cfg: DataCfg, limit: int) -> TokenCache:
    """Return a source's token files, built if they are missing; dialogues have `limit` ids at most.

    DataError if the source has too few records, or if its meta.json is damaged.
    """
    index = HashIndex(Path(cfg.cache_dir))
    # A document may have any length, and is learned as a whole.
    chat = (limit, source.learn) if want == "dialogues" else (0, "all")
    key = hash_parts(FORMAT, fingerprint(source, index), want, tokenizer.hash(), cfg.val_fraction, chat)
    folder = Path(cfg.cache_dir) / f"{want}-{source.kind}-{key}"  # key: everything that affects the content
    with lock_build(folder) as missing:
        if missing:
            _build(folder, source, want, tokenizer, cfg.val_fraction, chat[0])
    meta = read_meta(folder)
    _mark_used(folder)
    tokens = ", ".join(f"{columns.ids.count} tokens in {split}" for split, columns in meta.splits.items())
    log.info("data: %s from %s: %s, content hash %s", want, source.label, tokens, meta.content_sha256[:16])
    counts = {split: columns.ids.count for split, columns in meta.splits.items()}
    share = counts["val"] / max(1, sum(counts.values()))
    if not source.held_out() and not cfg.val_fraction / 2 <= share <= cfg.val_fraction * 1.5:
        log.warning(
            "data: %.2g %% of the tokens of %s validate, where data.val_fraction asks for %.2g %%; "
            "its %s are too few or too unequal",
            *(100 * share, source.label, 100 * cfg.val_fraction, want),
        )
    return TokenCache(folder, meta, tokenizer.V, index)


def hash_parts(*parts: Any) -> str:
    """Return a short hash (16 hex digits) of everything that a result depends on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _mark_used(path: Path) -> None:
    """Set the time of its last use, by which niels_gpt cache removes old ones."""
    with suppress(OSError):  # a cache may be read-only
        os.utime(path)


def _read_training_texts(source: SourceCfg, want: Want, val_fraction: float) -> Iterator[str]:
    for split, record in read_split(source, want, plan_split(source, want, val_fraction)):
        if split == "train":
            yield from list_texts(record)


class _Writer:
    """Write the files of one split, a buffer at a time; an item is a document, or a dialogue."""

    def __init__(self, folder: Path, split: str, V: int) -> None:
        self.dtypes = get_dtypes(V)
        self.paths = {column: folder / f"{split}.{column}" for column in self.dtypes}
        self.buffers = {column: array(TYPECODES[dtype]) for column, dtype in self.dtypes.items()}
        self.hashes = {column: hashlib.sha256() for column in self.dtypes}
        self.counts = dict.fromkeys(self.dtypes, 0)
        self.buffers["offsets"].append(0)
        self.total = 0  # ids so far
        self.keys, self.key = array("q"), hashlib.sha256()

    def add(self, ids: Iterable[int], target_mask: Iterable[int], content: bytes, *, ends: bool = True) -> None:
        """Add an item, or a section of one, with the content that it is sorted by."""
        self.buffers["ids"].extend(ids)
        self.buffers["target_mask"].extend(target_mask)
        self.total = self.counts["ids"] + len(self.buffers["ids"])
        self.key.update(content)
        if ends:
            self.buffers["offsets"].append(self.total)
            self.keys.append(int.from_bytes(self.key.digest()[:8], "little", signed=True))
            self.key = hashlib.sha256()
        if len(self.buffers["ids"]) >= CHUNK:
            self.flush()

    def flush(self) -> dict[str, Any]:
        """Put the buffers on disk and return the files' entry in meta.json."""
        for column, buffer in self.buffers.items():
            with add_file_name(self.paths[column]), self.paths[column].open("ab") as file:
                file.write(buffer)
                file.flush()
                flush_to_disk(file.fileno())
            self.hashes[column].update(buffer)
            self.counts[column] += len(buffer)
            del buffer[:]
        return {
            column: {"dtype": dtype, "count": self.counts[column], "sha256": self.hashes[column].hexdigest()}
            for column, dtype in self.dtypes.items()
        }


def _sort(unsorted: _Writer, writer: _Writer) -> dict[str, Any]:
    """Write the items again, sorted by a hash of their content: names and order of files make no difference."""
    unsorted.flush()
    files: dict[str, mmap | bytes] = {}
    for column, path in unsorted.paths.items():
        with path.open("rb") as file:
            files[column] = mmap(file.fileno(), 0, access=ACCESS_READ) if path.stat().st_size else b""
        path.unlink()  # a mapped file stays until it is closed
    ids, mask, offsets = files["ids"], files["target_mask"], array("q", files["offsets"][:])
    typecode = writer.buffers["ids"].typecode
    width = writer.buffers["ids"].itemsize
    for n in torch.tensor(unsorted.keys, dtype=torch.int64).argsort(stable=True).tolist():
        begin, end = offsets[n : n + 2]
        writer.add(array(typecode, ids[begin * width : end * width]), mask[begin:end], b"")
    return writer.flush()


def _build(
    folder: Path, source: SourceCfg, want: Want, tokenizer: Tokenizer, val_fraction: float, limit: int
) -> None:
    """Write all files into a temporary folder, which is then renamed to `folder`."""
    plan = plan_split(source, want, val_fraction)
    task, console = f"tokenizing {source.label}", get_console()
    log.info("data: %s, %s: %d", task, want, plan.records)
    hidden = not console.is_terminal
    parts = track(
        read_split(source, want, plan), task, plan.sections, console=console, transient=True, disable=hidden
    )
    with replace_atomically(folder) as part:
        part.mkdir()
        writers = {split: _Writer(part, f"unsorted-{split}", tokenizer.V) for split in ("train", "val")}
        counts: Counter[str] = Counter(left_out=0, continued=0, further_rows=0, cut_rows=0)
        ended, full = True, False
        from_files = source.kind not in ("pydocs", "synthetic")  # which always keep one order
        for split, record in parts:
            if source.max_tokens and ended and not full and writers["train"].total >= source.max_tokens:
                log.info("data: %s stops at data.max_tokens=%d of training", source.label, source.max_tokens)
                full = True
            if full and not source.held_out():
                break
            if full and split == "train":
                continue
            ended = not isinstance(record, Document) or record.ends
            content = encode_content(record) if from_files else b""
            if isinstance(record, Document):
                end = [tokenizer.special[END_OF_TEXT]] if record.ends else []
                writers[split].add([*tokenizer.encode(record.text), *end], [], content, ends=record.ends)
            else:
                rows = encode_dialogue(record.messages, tokenizer, limit, source.learn)
                for row in rows:
                    writers[split].add(row.ids, row.target_mask, content)
                more, cut = len(rows[1:]), sum(row.cut for row in rows)
                counts.update(left_out=not rows, continued=more > 0, further_rows=more, cut_rows=cut)
        splits = {split: _sort(writer, _Writer(part, split, tokenizer.V)) for split, writer in writers.items()}
        meta = {
            "format": FORMAT,
            "folder": folder.name,
            "source": describe(source),
            "tokenizer_sha256": tokenizer.hash(),
            "content_sha256": plan.content_sha256,
            "records": plan.records,
            "dialogues": counts,
            "splits": splits,
        }
        write_meta(part, meta)
    if any(counts.values()):
        log.log(
            logging.WARNING if counts["left_out"] or counts["cut_rows"] else logging.INFO,
            "data: %s: of %d dialogues, %d are longer than model.T=%d and go on in %d further rows, and %d have "
            "no answer to learn and are left out; in %d rows, words before an answer are cut",
            *(source.label, plan.records, counts["continued"], limit - 1, counts["further_rows"]),
            *(counts["left_out"], counts["cut_rows"]),
        )


@contextmanager
def lock_build(target: Path) -> Iterator[bool]:
    """Hold the lock of `target` and yield whether it is still missing; wait while another process builds it.

    A target that exists under its name is complete. It needs no lock, so a finished cache may be read-only.
    """
    if target.exists():
        yield False
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        log.info("data: waiting for another process to build %s", target.name)
        held = lock.acquire()
    with held:
        yield not target.exists()
