"""Tokenize each source once and cache the result, built by one process at a time."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from rich import get_console
from rich.filesize import decimal

from niels_gpt.adopted_tokenizer import adopt_tokenizer
from niels_gpt.config import DataCfg, SourceCfg
from niels_gpt.data.cache.hash_index import HashIndex
from niels_gpt.data.cache.token_build import FORMAT, build_files
from niels_gpt.data.cache.token_files import TokenCache, read_meta
from niels_gpt.data.sources import Want, fingerprint, list_texts, select_sources
from niels_gpt.data.text_sample import sample_texts
from niels_gpt.data.validation_split import SplitPlan, plan_split, read_split
from niels_gpt.errors import DataError
from niels_gpt.printable import format_count
from niels_gpt.storage import write_text
from niels_gpt.tokenizer import SPECIAL_TOKENS, BytesTokenizer, Tokenizer, load_tokenizer, train_bpe
from niels_gpt.untrusted import read_text

MAX_PLAN = 1 << 28  # bytes of the file of a split
OUTCOMES = {  # of dialogues that do not fit into a sequence, or have nothing to learn
    "continued": "{continued:,} are longer than model.T={T} and go on in {further_items:,} further items",
    "cut_items": "in {cut_items:,} items, words before an answer are cut: raise model.T to keep them",
    "left_out": "{left_out:,} are left out, without an answer to learn",
}
log = logging.getLogger("niels_gpt")


def build_tokenizer(cfg: DataCfg, want: Want, V: int) -> Tokenizer:
    """Return the tokenizer of this data: bytes, a file's, or BPE of V entries trained on the training split.

    DataError if the text gives fewer entries than V, or if a file cannot be used.
    """
    if cfg.tokenizer == "bytes":
        return BytesTokenizer()
    if cfg.tokenizer != "bpe":
        adopted, names = adopt_tokenizer(Path(cfg.tokenizer))
        new = ", ".join(token for token in SPECIAL_TOKENS if token not in names)
        parts = "".join(f"; {token} is {name}" for token, name in names.items() if token != name)
        log.info("tokenizer: %s has %d entries%s", cfg.tokenizer, adopted.V, parts + f"; new: {new}" * bool(new))
        return adopted
    sources = select_sources(cfg.mixture(), want)
    index = HashIndex(Path(cfg.cache_dir), cfg.verify)
    key = hash_parts(
        [fingerprint(source, index) for source in sources], want, V, cfg.val_fraction, cfg.tokenizer_sample
    )
    index.save()
    path = Path(cfg.cache_dir) / f"tokenizer-{key}.json"
    hash_path = path.with_suffix(".sha256")  # a damaged tokenizer may still load, as another one
    with lock_build(path) as missing:
        if missing:
            plans = [_plan_once(source, want, cfg, index)[0] for source in sources]
            texts = (
                text
                for source, plan in zip(sources, plans, strict=True)
                for split, record in read_split(source, want, plan)
                if split == "train"
                for text in list_texts(record)
            )
            with get_console().status("tokenizer: reading the training split") as status:
                sample = sample_texts(texts, cfg.tokenizer_sample)
                size = decimal(sum(len(text.encode("utf-8", "replace")) for text in sample))
                task = f"tokenizer: training a BPE of {V:,} entries on {size} of the training split"
                log.info(task)
                status.update(task)
                trained = train_bpe(sample, V)
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


def open_cache(source: SourceCfg, want: Want, tokenizer: Tokenizer, cfg: DataCfg, limit: int) -> TokenCache:
    """Return a source's token files, built if they are missing; dialogues have `limit` ids at most.

    DataError if the source has too few records, or if its meta.json is damaged.
    """
    index = HashIndex(Path(cfg.cache_dir), cfg.verify)
    # A document may have any length, and is learned as a whole.
    chat = (limit, source.learn) if want == "dialogues" else (0, "all")
    key = hash_parts(FORMAT, fingerprint(source, index), want, tokenizer.hash(), cfg.val_fraction, chat)
    folder = Path(cfg.cache_dir) / f"{want}-{source.kind}-{key}"  # key: everything that affects the content
    with lock_build(folder) as missing:
        if missing:
            plan, path = _plan_once(source, want, cfg, index)
            build_files(folder, source, want, tokenizer, plan, chat[0])
            path.unlink(missing_ok=True)
    meta = read_meta(folder)
    _mark_used(folder)
    counts = {split: columns.ids.count for split, columns in meta.splits.items()}
    tokens = ", ".join(f"{format_count(count, 'token')} in {split}" for split, count in counts.items())
    log.info("data: %s from %s: %s, content hash %s", want, source.label, tokens, meta.content_sha256[:16])
    share = counts["val"] / max(1, sum(counts.values()))
    if not source.held_out() and not cfg.val_fraction / 2 <= share <= cfg.val_fraction * 1.5:
        log.warning(
            "data: %.2g %% of the tokens of %s validate, where data.val_fraction asks for %.2g %%; "
            "its %s are too few or too unequal",
            *(100 * share, source.label, 100 * cfg.val_fraction, want),
        )
    outcomes = Counter(meta.dialogues | {"T": limit - 1})
    said = [text.format_map(outcomes) for key, text in OUTCOMES.items() if outcomes[key]]
    if said:
        level = logging.WARNING if outcomes["left_out"] or outcomes["cut_items"] else logging.INFO
        dialogues = format_count(meta.records, "dialogue")
        log.log(level, "data: %s: of %s, %s", source.label, dialogues, "; ".join(said))
    return TokenCache(folder, meta, tokenizer.V, index)


def hash_parts(*parts: Any) -> str:
    """Return a short hash (16 hex digits) of everything that a result depends on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _mark_used(path: Path) -> None:
    """Set the time of its last use, by which niels_gpt cache removes old ones."""
    with suppress(OSError):  # a cache may be read-only
        os.utime(path)


def _plan_once(source: SourceCfg, want: Want, cfg: DataCfg, index: HashIndex) -> tuple[SplitPlan, Path]:
    """Return the split of a source, and the file that keeps it until the token files are built."""
    key, plans = hash_parts(fingerprint(source, index), want, cfg.val_fraction), TypeAdapter(SplitPlan)
    path = Path(cfg.cache_dir) / f".split-{key}.json"
    with lock_build(path):
        with suppress(OSError, ValueError):
            sha256, _, content = read_text(path, MAX_PLAN).partition("\n")
            if sha256 == hashlib.sha256(content.encode()).hexdigest():
                return plans.validate_json(content), path
        plan = plan_split(source, want, cfg.val_fraction)
        content = plans.dump_json(plan).decode()
        write_text(path, f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}")
        return plan, path


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
