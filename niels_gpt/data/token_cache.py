"""Tokenize each source once and cache the result, built by one process at a time."""

import hashlib
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich import get_console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn, track

from niels_gpt.adopted_tokenizer import adopt_tokenizer
from niels_gpt.config import DataCfg, SourceCfg
from niels_gpt.data.chat_template import ChatTokens, encode_dialogue
from niels_gpt.data.hash_index import HashIndex
from niels_gpt.data.readers.records import Dialogue
from niels_gpt.data.sources import Want, encode_content, fingerprint, list_texts, read_records, select_sources
from niels_gpt.data.text_sample import sample_texts
from niels_gpt.data.token_files import TokenCache, get_dtypes, read_meta, write_meta
from niels_gpt.errors import DataError
from niels_gpt.seeds import derive_seed
from niels_gpt.storage import add_file_name, flush_to_disk, replace_atomically, write_text
from niels_gpt.tokenizer import END_OF_TEXT, SPECIAL_TOKENS, BytesTokenizer, Tokenizer, load_tokenizer, train_bpe

FORMAT = 3
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
        parts = ", ".join(f"{token} is {names.get(token, 'new')}" for token in SPECIAL_TOKENS)
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
    limit = limit if want == "dialogues" else 0  # a document may have any length
    key = hash_parts(FORMAT, fingerprint(source, index), want, tokenizer.hash(), cfg.val_fraction, limit)
    folder = Path(cfg.cache_dir) / f"{want}-{source.kind}-{key}"  # key: everything that affects the content
    with lock_build(folder) as missing:
        if missing:
            _build(folder, source, want, tokenizer, cfg.val_fraction, limit)
    meta = read_meta(folder)
    with suppress(OSError):  # a cache may be read-only
        os.utime(folder)  # the time of its last use, for whoever prunes
    tokens = ", ".join(f"{columns.ids.count} tokens in {split}" for split, columns in meta.splits.items())
    log.info("data: %s from %s: %s, content hash %s", want, source.label, tokens, meta.content_sha256[:16])
    return TokenCache(folder, meta, tokenizer.V, index)


def hash_parts(*parts: Any) -> str:
    """Return a short hash (16 hex digits) of everything that a result depends on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _read_training_texts(source: SourceCfg, want: Want, val_fraction: float) -> Iterator[str]:
    is_val, _ = _make_split_rule(source, want, val_fraction)
    for record in read_records(source, want):
        if not is_val(record.name):
            yield from list_texts(record)


def _make_split_rule(source: SourceCfg, want: Want, val_fraction: float) -> tuple[Callable[[str], bool], int]:
    """Return a test for names of the validation split, and the number of records.

    A name is in it if its hash is in the lowest `val_fraction`. The lowest hash of all always is and the highest
    never is, so that a handful of documents has both splits.
    """
    count, names = 0, set()
    for record in read_records(source, want):
        count += 1
        names.add(derive_seed("split", record.name))
    if len(names) < 2:
        raise DataError(
            f"{source.label} has {len(names)} differently named {want}; training and validation need one each",
            "add more data, or split text with data.documents=blank_lines",
        )
    threshold = min(max(val_fraction * 2**63, min(names) + 1), max(names))
    return (lambda name: derive_seed("split", name) < threshold), count


class _Writer:
    """Write the files of one split, a buffer at a time."""

    def __init__(self, folder: Path, split: str, V: int) -> None:
        self.dtypes = get_dtypes(V)
        self.paths = {column: folder / f"{split}.{column}" for column in self.dtypes}
        self.buffers = {column: array(TYPECODES[dtype]) for column, dtype in self.dtypes.items()}
        self.hashes = {column: hashlib.sha256() for column in self.dtypes}
        self.counts = dict.fromkeys(self.dtypes, 0)
        self.buffers["offsets"].append(0)

    def add(self, tokens: ChatTokens) -> None:
        self.buffers["ids"].extend(tokens.ids)
        self.buffers["target_mask"].extend(tokens.target_mask)
        self.buffers["offsets"].append(self.counts["ids"] + len(self.buffers["ids"]))
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


def _build(
    folder: Path, source: SourceCfg, want: Want, tokenizer: Tokenizer, val_fraction: float, limit: int
) -> None:
    """Write all files into a temporary folder, which is then renamed to `folder`."""
    is_val, count = _make_split_rule(source, want, val_fraction)
    task, console = f"tokenizing {source.label}", get_console()
    log.info("data: %s, %d records", task, count)
    hidden = not console.is_terminal
    records = track(read_records(source, want), task, count, console=console, transient=True, disable=hidden)
    with replace_atomically(folder) as part:
        part.mkdir()
        writers = {split: _Writer(part, split, tokenizer.V) for split in ("train", "val")}
        content, dropped = hashlib.sha256(), 0
        for record in records:
            content.update(encode_content(record))
            if isinstance(record, Dialogue):
                tokens = encode_dialogue(record.messages, tokenizer, limit)
            else:
                tokens = ChatTokens([*tokenizer.encode(record.text), tokenizer.special[END_OF_TEXT]], [])
            if tokens is None:
                dropped += 1
            else:
                writers["val" if is_val(record.name) else "train"].add(tokens)
        meta = {
            "format": FORMAT,
            "folder": folder.name,
            "source": source.model_dump(),
            "tokenizer_sha256": tokenizer.hash(),
            "content_sha256": content.hexdigest(),
            "records": count,
            "dropped": dropped,
            "splits": {split: writer.flush() for split, writer in writers.items()},
        }
        write_meta(part, meta)
    if dropped:
        log.warning("data: %d of %d dialogues have no answer within %d tokens; left out", dropped, count, limit)


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
