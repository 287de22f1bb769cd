"""Fetch data sets of the Hugging Face hub. No code of one is run: `datasets` reads files of data only."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from niels_gpt.config import SourceCfg
from niels_gpt.data.readers.tables import FORMATS, get_format
from niels_gpt.errors import DataError, first_line
from niels_gpt.storage import replace_atomically, write_text
from niels_gpt.untrusted import read_text

BYTES_PER_TOKEN = 16  # of text are read at most for each token of data.max_tokens
log = logging.getLogger("niels_gpt")


def is_local(cfg: SourceCfg) -> bool:
    """Return whether `cfg.repo` is a file or folder, not a data set of the hub. DataError if it can be neither."""
    if Path(cfg.repo).expanduser().exists():
        return True
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", cfg.repo):
        hint = "name a folder, or owner/name of the Hugging Face hub"
        raise DataError(f"data.repo={cfg.repo}: no such folder", hint)
    return False


def resolve_revision(cfg: SourceCfg) -> str:
    """Return the commit of `cfg.revision`, or the newest, which stays the same in `cfg.hub_dir`; "" if local."""
    if is_local(cfg):
        return ""
    if re.fullmatch("[0-9a-f]{40}", cfg.revision):
        return cfg.revision
    kept = _name_file(cfg, cfg.revision or "newest", "commit")
    with _reach(cfg):
        if not kept.exists():
            from huggingface_hub import HfApi

            commit = str(HfApi().dataset_info(cfg.repo, revision=cfg.revision or None).sha)
            log.info("data: %s is at data.revision=%s; delete %s for the newest", cfg.repo, commit, kept)
            write_text(kept, commit)
        return read_text(kept, 40)


def fetch_files(cfg: SourceCfg) -> list[Path]:
    """Return the files of a split, or one of its streamed rows; what is in `cfg.hub_dir` is not fetched again."""
    commit = resolve_revision(cfg)
    name = f"{commit}--{cfg.subset}-{cfg.split}"
    with _reach(cfg):
        if cfg.streaming:
            streamed = _name_file(cfg, f"{name}-{cfg.column}-{cfg.max_tokens}", "jsonl")
            if not streamed.exists():
                _stream(cfg, commit, streamed)
            return [streamed]
        from huggingface_hub import hf_hub_download

        listed = _name_file(cfg, name, "files")
        if not listed.exists():
            write_text(listed, "\n".join(_list_files(cfg, commit)))
        where: dict[str, Any] = {"repo_type": "dataset", "revision": commit, "cache_dir": cfg.hub_dir}
        return [Path(hf_hub_download(cfg.repo, file, **where)) for file in read_text(listed, 1 << 24).split("\n")]


def _list_files(cfg: SourceCfg, commit: str) -> list[str]:
    from datasets import load_dataset_builder

    builder = load_dataset_builder(cfg.repo, cfg.subset or None, revision=commit, cache_dir=cfg.hub_dir)
    splits = builder.config.data_files
    if cfg.split not in splits:
        raise DataError(f"{cfg.repo} has no split {cfg.split!r}, only {', '.join(splits)}", "set data.split")
    names = [str(name).removeprefix(f"hf://datasets/{cfg.repo}@{commit}/") for name in splits[cfg.split]]
    for name in names:
        if get_format(name) not in FORMATS:
            raise DataError(f"{cfg.repo}: {name} is none of {', '.join(FORMATS)}", "set data.streaming=true")
    return names


def _stream(cfg: SourceCfg, commit: str, target: Path) -> None:
    """Write the first rows of a split, as many as data.max_tokens may need, to a file of JSON lines."""
    from datasets import load_dataset

    where = {"split": cfg.split, "revision": commit, "cache_dir": cfg.hub_dir, "streaming": True}
    rows = load_dataset(cfg.repo, cfg.subset or None, **where)
    limit = cfg.max_tokens * BYTES_PER_TOKEN
    log.info("data: streaming %s, split %s, into %s", cfg.repo, cfg.split, target)
    with replace_atomically(target) as part, part.open("w", encoding="utf-8") as file:
        for row in rows.decode(False) if rows.features else rows:  # pictures stay bytes
            chosen = {cfg.column: row[cfg.column]} if cfg.column in row else row
            file.write(json.dumps(chosen, default=repr) + "\n")
            if limit and file.tell() >= limit:
                break


@contextmanager
def _reach(cfg: SourceCfg) -> Iterator[None]:
    """Make any error of the hub's libraries, which have many, a DataError that says how to do without."""
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line for every request otherwise
    try:
        yield
    except (DataError, ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:
        reason = f"{cfg.repo} of the Hugging Face hub: {type(error).__name__}: {first_line(error)}"
        hint = "without a network, copy its files into a folder and set data.repo=FOLDER/; online, check"
        raise DataError(reason, f"{hint} {cfg.repo}") from error


def _name_file(cfg: SourceCfg, name: str, ending: str) -> Path:
    """Return a path in `cfg.hub_dir` for something of a data set."""
    Path(cfg.hub_dir).mkdir(parents=True, exist_ok=True)
    return Path(cfg.hub_dir, re.sub(r"[^\w.-]+", "--", f"{cfg.repo}--{name}") + f".{ending}")
