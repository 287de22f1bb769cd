"""Read the documents and dialogues of a source of any kind."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

from niels_gpt.config import SourceCfg, SourceKind
from niels_gpt.data import synthetic
from niels_gpt.data.hash_index import HashIndex
from niels_gpt.data.pydocs import source as pydocs
from niels_gpt.data.readers import local_files
from niels_gpt.data.readers.records import Dialogue, Document
from niels_gpt.errors import DataError

Want = Literal["documents", "dialogues"]
CODE = ("seeds.py", "tokenizer.py")  # outside this folder, but the cache depends on them too

KINDS: dict[SourceKind, ModuleType] = {
    "pydocs": pydocs,
    "text": local_files,
    "jsonl": local_files,
    "synthetic": synthetic,
}


def read_records(cfg: SourceCfg, want: Want) -> Iterator[Document | Dialogue]:
    """Yield the records of a source, always in the same order. DataError if a file or package cannot be used."""
    module = KINDS[cfg.kind]
    yield from module.read_documents(cfg) if want == "documents" else module.read_dialogues(cfg)


def select_sources(sources: Sequence[SourceCfg], want: Want) -> list[SourceCfg]:
    """Return the sources that have documents or dialogues. Plain text has no dialogues; JSONL may have either.

    DataError if none has them, or if a file cannot be used.
    """
    found = [source for source in sources if _has_records(source, want)]
    if not found:
        labels = ", ".join(source.label for source in sources)
        phase = "phase=sft" if want == "documents" else "phase=pretrain"
        raise DataError(f"{labels}: no {want} found", f"use {phase}, or add a source of {want} to data.sources")
    return found


def _has_records(source: SourceCfg, want: Want) -> bool:
    if source.kind == "jsonl":
        return local_files.has_rows(source, Document if want == "documents" else Dialogue)
    return source.kind != "text" or want == "documents"


def fingerprint(cfg: SourceCfg, index: HashIndex) -> str:
    """Return a text that changes with the content of the source, and with the code that reads it."""
    module = KINDS[cfg.kind]
    own = local_files.fingerprint(cfg, index.sha256) if module is local_files else module.fingerprint(cfg)
    return f"{cfg.kind}:{own}:{_hash_code()}"


@cache
def _hash_code() -> str:
    """Return a hash of the code that decides what is cached."""
    folder = Path(__file__).parent
    paths = [*sorted(folder.rglob("*.py")), *(folder.parent / name for name in CODE)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def list_texts(record: Document | Dialogue) -> list[str]:
    """Return the texts of a record, without roles."""
    if isinstance(record, Document):
        return [record.text]
    return [message.content for message in record.messages]


def encode_content(record: Document | Dialogue) -> bytes:
    """Return the bytes that a record adds to the hash of its source's content.

    Roles are left out if user and assistant alternate, and so is what to learn if it is all, because older
    checkpoints recorded the hash without them.
    """
    content = "\0".join((record.name, *list_texts(record))).encode()
    if isinstance(record, Document):
        return content
    roles = " ".join(message.role for message in record.messages)
    if not all(message.learn for message in record.messages):
        roles += " learn " + "".join("01"[message.learn] for message in record.messages)
    if re.fullmatch("(system )?(user assistant ?)*(user)?", roles):
        return content
    return content + b"\xff" + roles.encode()  # UTF-8 text never has 0xff
