"""Read the documents and dialogues of a source, whatever its kind."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal

from niels_gpt.config import SourceCfg, SourceKind
from niels_gpt.data import synthetic
from niels_gpt.data.hash_index import HashIndex
from niels_gpt.data.pydocs import source as pydocs
from niels_gpt.data.readers import local_files
from niels_gpt.data.readers.records import Dialogue, Document, Message
from niels_gpt.errors import DataError

Want = Literal["documents", "dialogues"]
CODE = ("seeds.py", "tokenizer.py")  # outside this folder, but it decides what is cached

KINDS: dict[SourceKind, ModuleType] = {
    "pydocs": pydocs,
    "text": local_files,
    "jsonl": local_files,
    "synthetic": synthetic,
}


def records(cfg: SourceCfg, want: Want) -> Iterator[Document] | Iterator[Dialogue]:
    """Yield what the source has of the wanted kind, in an order that is always the same.

    Raises:
        DataError: a file, package or line that cannot be used.
    """
    module = KINDS[cfg.kind]
    yield from module.read_documents(cfg) if want == "documents" else module.read_dialogues(cfg)


def having(sources: Sequence[SourceCfg], want: Want) -> list[SourceCfg]:
    """Return the sources that have what is wanted: text has no dialogues, and JSONL what its first rows are.

    Raises:
        DataError: none has, or a file cannot be used.
    """
    found = [source for source in sources if _has(source, want)]
    if not found:
        called = ", ".join(source.called for source in sources)
        phase = "phase=sft" if want == "documents" else "phase=pretrain"
        raise DataError(f"{called}: no {want} there", f"use {phase}, or add a source of them to data.sources")
    return found


def _has(source: SourceCfg, want: Want) -> bool:
    if source.kind == "jsonl":
        return local_files.has_rows(source, Document if want == "documents" else Dialogue)
    return source.kind != "text" or want == "documents"


def fingerprint(cfg: SourceCfg, index: HashIndex) -> str:
    """Return a name for what token files of the source hold, without making it; other code gives another name."""
    module = KINDS[cfg.kind]
    own = local_files.fingerprint(cfg, index.sha256) if module is local_files else module.fingerprint(cfg)
    folder = Path(__file__).parent
    paths = [*sorted(folder.rglob("*.py")), *(folder.parent / name for name in CODE)]
    code = b"".join(path.read_bytes() for path in paths)
    return f"{cfg.kind}:{own}:{hashlib.sha256(code).hexdigest()[:16]}"


def texts_of(record: Document | Dialogue) -> list[str]:
    """Return the texts of a record, without roles."""
    if isinstance(record, Document):
        return [record.text]
    return [message.content for message in record.messages]


def content_of(record: Document | Dialogue) -> bytes:
    """Return the bytes that a record adds to the hash of its source's content.

    Roles that take turns are left out: they follow from the number of texts and from the name, which in JSONL is
    that of the first question, and checkpoints have recorded the hash without them. Others are told apart.
    """
    content = "\0".join((record.name, *texts_of(record))).encode()
    if isinstance(record, Document) or _take_turns(record.messages):
        return content
    return content + b"\xff" + " ".join(message.role for message in record.messages).encode()  # 0xff: in no text


def _take_turns(messages: Sequence[Message]) -> bool:
    """Return whether user and assistant follow one another, perhaps after the system."""
    first = int(messages[0].role == "system")
    return all(message.role == ("user", "assistant")[n % 2] for n, message in enumerate(messages[first:]))
