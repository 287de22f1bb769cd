"""Read data sets of the Hugging Face hub, and folders of parquet, arrow, JSON and CSV.

The rows of a hub's data set are files in `cfg.hub_dir` before they are read: its own, or one of those streamed.
No code of a data set is run: `datasets` reads files of data only.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from niels_gpt.config import SourceCfg
from niels_gpt.data.hash_index import hash_file
from niels_gpt.data.readers import tables
from niels_gpt.data.readers.records import Dialogue, Document
from niels_gpt.data.readers.row_shapes import RowParser
from niels_gpt.data.readers.trees import KEYS, join_trees
from niels_gpt.errors import DataError, first_line, is_out_of_memory
from niels_gpt.storage import replace_atomically, write_text
from niels_gpt.untrusted import read_text

BYTES_PER_TOKEN = 16  # of text are read at most for each token of data.max_tokens
FIRST_ROWS = 1000  # read to find out which kinds of row there are
COMMIT = re.compile("[0-9a-f]{40}")
log = logging.getLogger("niels_gpt")


def read_documents(cfg: SourceCfg) -> Iterator[Document]:
    """Yield the texts of `cfg.column`, or of rows with a text. DataError if there are none to be had."""
    yield from (record for record in _read_records(cfg) if isinstance(record, Document))


def read_dialogues(cfg: SourceCfg) -> Iterator[Dialogue]:
    """Yield the dialogues of rows and of trees of messages. DataError as for `read_documents`."""
    yield from (record for record in _read_records(cfg) if isinstance(record, Dialogue))


def has_rows(cfg: SourceCfg, kind: type[Document] | type[Dialogue]) -> bool:
    """Return whether there is such a record among the first; a column has documents only."""
    if cfg.column:
        return kind is Document
    return any(isinstance(record, kind) for record in islice(_read_records(cfg), FIRST_ROWS))


def fingerprint(cfg: SourceCfg, sha256: Callable[[Path], str] = hash_file) -> str:
    """Return a hash that changes with the content of local files, or with the revision of a hub's data set."""
    content: list[Any] = [cfg.repo, cfg.subset, cfg.split, cfg.streaming, resolve_revision(cfg)]
    if local := _find_local(cfg):
        content = [sha256(path) for path in tables.find_files(local, cfg.split)]
    return hashlib.sha256(json.dumps([content, cfg.column, cfg.on_bad_line]).encode()).hexdigest()


def resolve_revision(cfg: SourceCfg) -> str:
    """Return the commit of `cfg.revision`, or of the newest at its first use; nothing for local files.

    It is kept in `cfg.hub_dir`, so that later runs read the same data, offline too.
    """
    if _find_local(cfg) or COMMIT.fullmatch(cfg.revision):
        return "" if _find_local(cfg) else cfg.revision
    kept = _name_file(cfg, cfg.revision or "newest", ".commit")
    if not kept.exists():
        with _reach(cfg):
            from huggingface_hub import HfApi

            commit = HfApi().dataset_info(cfg.repo, revision=cfg.revision or None).sha
        log.info("data: %s is at data.revision=%s; delete %s for the newest", cfg.repo, commit, kept)
        write_text(kept, str(commit))
    commit = kept.read_text(encoding="utf-8", errors="replace").strip()
    if not COMMIT.fullmatch(commit):
        raise DataError(f"{kept} is damaged: it holds no commit", "delete it; the newest is then taken")
    return commit


def _find_local(cfg: SourceCfg) -> Path | None:
    """Return the folder or file that `cfg.repo` names, or None for a data set of the hub."""
    path = Path(cfg.repo).expanduser()
    if path.exists():
        return path
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", cfg.repo) and not cfg.repo.startswith("."):
        return None
    raise DataError(
        f"data.repo={cfg.repo}: no such folder", "name a folder, or owner/name of the Hugging Face hub"
    )


@contextmanager
def _reach(cfg: SourceCfg) -> Iterator[None]:
    """Make any error of the hub's libraries, which have many, a DataError that says how to do without."""
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line for every request otherwise
    hint = f"without a network, copy its files into a folder and set data.repo=FOLDER/; online, check {cfg.repo}"
    try:
        yield
    except (DataError, ModuleNotFoundError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise DataError(
            f"{cfg.repo} of the Hugging Face hub: {type(error).__name__}: {first_line(error)}", hint
        ) from error


def _name_file(cfg: SourceCfg, *parts: str) -> Path:
    """Return a path in `cfg.hub_dir` for something of a data set."""
    name = "--".join([cfg.repo, *parts[:-1]]).replace("/", "--") + parts[-1]
    Path(cfg.hub_dir).mkdir(parents=True, exist_ok=True)
    return Path(cfg.hub_dir) / name


# --- files of rows


def _find_files(cfg: SourceCfg) -> list[Path]:
    """Return the files with the rows of a split; those of the hub are fetched at first."""
    if local := _find_local(cfg):
        return tables.find_files(local, cfg.split)
    commit = resolve_revision(cfg)
    key = hashlib.sha256(
        repr((cfg.subset, cfg.split, cfg.column, cfg.max_tokens, cfg.streaming)).encode()
    ).hexdigest()[:16]
    streamed = _name_file(cfg, commit, key, ".jsonl")
    if streamed.exists():
        return [streamed]
    listed = _name_file(cfg, commit, f"{cfg.subset}-{cfg.split}", ".fetched")
    with _reach(cfg):
        if not cfg.streaming:
            with suppress(OSError, ValueError):  # damaged, or not there yet
                found = [Path(cfg.hub_dir, name) for name in json.loads(read_text(listed, 1 << 24))]
                if found and all(path.is_file() for path in found):
                    return found
            names = _list_hub_files(cfg, commit)
            if all(tables.get_format(name) in tables.READERS for name in names):
                from huggingface_hub import hf_hub_download

                get = partial(hf_hub_download, repo_type="dataset", revision=commit, cache_dir=cfg.hub_dir)
                files = [Path(get(cfg.repo, name)) for name in names]
                write_text(listed, json.dumps([os.path.relpath(path, cfg.hub_dir) for path in files]))
                return files
        _stream(cfg, commit, streamed)
    return [streamed]


def _list_hub_files(cfg: SourceCfg, commit: str) -> list[str]:
    from datasets import load_dataset_builder

    builder = load_dataset_builder(cfg.repo, cfg.subset or None, revision=commit, cache_dir=cfg.hub_dir)
    splits = builder.config.data_files
    if cfg.split not in splits:
        raise DataError(f"{cfg.repo} has no split {cfg.split!r}, only {', '.join(splits)}", "set data.split")
    prefix = f"hf://datasets/{cfg.repo}@{commit}/"
    return [str(name).removeprefix(prefix) for name in splits[cfg.split]]


def _stream(cfg: SourceCfg, commit: str, target: Path) -> None:
    """Write the first rows of a split, as many as data.max_tokens may need, to a file of JSON lines."""
    from datasets import load_dataset

    where = {"split": cfg.split, "revision": commit, "cache_dir": cfg.hub_dir, "streaming": True}
    rows = load_dataset(cfg.repo, cfg.subset or None, **where).decode(False)  # pictures stay bytes
    limit = cfg.max_tokens * BYTES_PER_TOKEN
    log.info("data: streaming %s, split %s, into %s", cfg.repo, cfg.split, target)
    with replace_atomically(target) as part, part.open("w", encoding="utf-8") as file:
        for row in rows:
            chosen = {cfg.column: row[cfg.column]} if cfg.column in row else row
            file.write(json.dumps(chosen, default=repr) + "\n")
            if limit and file.tell() >= limit:
                break


# --- records


def _read_records(cfg: SourceCfg) -> Iterator[Document | Dialogue]:
    """Yield the records of all files. DataError at a bad row, unless they are skipped."""
    files = _find_files(cfg)
    rows: Iterator[tables.Placed] = (placed for path in files for placed in tables.read_rows(path))
    if first := next(rows, None):
        rows = chain([first], rows)
    if not cfg.column and first and isinstance(first[1], dict) and first[1].keys() >= KEYS:
        rows = join_trees(rows)
    parser, blank = RowParser(cfg.label, skip=cfg.on_bad_line == "skip"), 0
    for place, row in rows:
        if cfg.column and isinstance(row, dict):
            row = _take_column(row, cfg.column)
            if isinstance(row, ValueError) and not parser.skip:
                raise DataError(f"{place}: {row}", "set data.column to a column of text")
        if row is None:
            blank += 1
        elif record := parser.parse(place, row):
            yield record
    parser.require_rows(f"{cfg.repo}, split {cfg.split}")
    parser.log(f"split {cfg.split}" + (f", {blank} rows without text in {cfg.column} left out" if blank else ""))


def _take_column(row: Mapping[str, Any], column: str) -> dict[str, str] | ValueError | None:
    """Return a row of one text, None if the column has none, or what is wrong."""
    if column not in row:
        return ValueError(f"no column {column!r:.80}, only {', '.join(map(str, row)):.200}")
    text = row[column]
    if not isinstance(text, str | None):
        return ValueError(f"column {column!r} holds {type(text).__name__}, not text")
    return {"text": text} if text and text.strip() else None
