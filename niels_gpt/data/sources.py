"""Read the documents and dialogues of a source of any kind."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from niels_gpt.config import SourceCfg, SourceKind
from niels_gpt.data import synthetic
from niels_gpt.data.cache.hash_index import HashIndex
from niels_gpt.data.pydocs import source as pydocs
from niels_gpt.data.readers import hub, local_files
from niels_gpt.data.readers.records import SECTION, Dialogue, Document, cut_sections
from niels_gpt.errors import DataError

Want = Literal["documents", "dialogues"]
_JSON = json.JSONEncoder(ensure_ascii=False)
CODE = ("seeds.py", "tokenizer.py")  # outside this folder, but the cache depends on them too
NOT_CACHED = {"batches.py", "statistics.py", "hash_index.py", "progress.py"}  # the cache does not depend on them

KINDS: dict[SourceKind, ModuleType] = {
    "pydocs": pydocs,
    "text": local_files,
    "jsonl": local_files,
    "synthetic": synthetic,
    "hf": local_files,
}


def read_records(cfg: SourceCfg, want: Want) -> Iterator[Document | Dialogue]:
    """Yield the records of a source, always in the same order, a long text in sections.

    DataError if a file or package cannot be used.
    """
    module = KINDS[cfg.kind]
    left = cfg.max_tokens * hub.BYTES_PER_TOKEN  # so that no pass reads a huge source to its end
    for record in module.read_documents(cfg) if want == "documents" else module.read_dialogues(cfg):
        whole = isinstance(record, Document) and record.ends and not record.name
        if whole and len(record.text) > SECTION:
            yield from cut_sections(iter(partial(io.StringIO(record.text).readline, SECTION), ""))
        else:
            yield record
        left -= sum(len(text.encode()) for text in list_texts(record)) if cfg.max_tokens else 0
        if left < 0 and (isinstance(record, Dialogue) or record.ends):
            break


def select_sources(sources: Sequence[SourceCfg], want: Want) -> list[SourceCfg]:
    """Return the sources that have documents or dialogues. Plain text has no dialogues; rows may be either.

    DataError if none has them, or if a file cannot be used.
    """
    found = [source for source in sources if _has_records(source, want)]
    if not found:
        labels = ", ".join(source.label for source in sources)
        phase = "phase=sft" if want == "documents" else "phase=pretrain"
        raise DataError(f"{labels}: no {want} found", f"use {phase}, or add a source of {want} to data.sources")
    return found


def _has_records(source: SourceCfg, want: Want) -> bool:
    if source.kind in ("jsonl", "hf"):
        return bool(KINDS[source.kind].has_rows(source, Document if want == "documents" else Dialogue))
    return source.kind != "text" or want == "documents"


def fingerprint(cfg: SourceCfg, index: HashIndex) -> str:
    """Return a text that changes with the content of the source, and with the code that reads it."""
    module = KINDS[cfg.kind]
    own = module.fingerprint(cfg, index.sha256) if module is local_files else module.fingerprint(cfg)
    text = f"{cfg.kind}:{own}:{cfg.max_tokens}:{_hash_code()}"
    if held_out := cfg.held_out():
        try:
            text += f"|{fingerprint(held_out, index)}"
        except DataError as error:
            hint = error.hint.replace("data.split", "data.val_split")
            raise DataError(str(error).replace("data.files", "data.val_files"), hint) from None
    return text


def describe(cfg: SourceCfg) -> dict[str, Any]:
    """Return the settings of a source, with the revision that is read, but not where it is kept."""
    settings = cfg.model_dump(mode="json", exclude={"name", "hub_dir"})
    return settings | ({"revision": hub.resolve_revision(cfg)} if cfg.kind == "hf" else {})


@cache
def _hash_code() -> str:
    """Return a hash of the code that decides what is cached."""
    folder = Path(__file__).parent
    paths = [path for path in sorted(folder.rglob("*.py")) if path.name not in NOT_CACHED]
    paths += [folder.parent / name for name in CODE]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def list_texts(record: Document | Dialogue) -> list[str]:
    """Return the texts of a record, without roles."""
    if isinstance(record, Document):
        return [record.text]
    return [message.content for message in record.messages]


def encode_content(record: Document | Dialogue) -> bytes:
    """Return the bytes of all that is learned from a record, without names and paths."""
    return (record.text if isinstance(record, Document) else _JSON.encode(record.messages)).encode()
