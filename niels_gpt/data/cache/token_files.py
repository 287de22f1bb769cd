"""Map token files and verify them against the sizes and hashes in meta.json."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from torch import Tensor

from niels_gpt.data.cache.hash_index import HashIndex
from niels_gpt.errors import DataError
from niels_gpt.storage import write_text
from niels_gpt.untrusted import UnreadableFile, explain_first_error, read_json

DTYPES = {"uint16": torch.uint16, "uint32": torch.uint32, "uint8": torch.uint8, "int64": torch.int64}
META_FILE = "meta.json"
FIND_DAMAGE = "add data.verify=true, which names the damaged file"


class TokenFiles(NamedTuple):
    """One split of one source. Item i is ids[offsets[i] : offsets[i + 1]]; `target_mask` marks its targets.

    An item is a document, a dialogue or, of one that is too long, a part.
    """

    ids: Tensor  # uint16, or uint32 if V needs it
    target_mask: Tensor  # uint8; empty for documents, where every token is a target
    offsets: Tensor  # int64, items + 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class FileEntry(_Record):
    """A file of numbers."""

    count: NonNegativeInt
    sha256: str


class SplitEntry(_Record):
    """The files of one split: token ids, target mask, and the offset of each item."""

    ids: FileEntry
    target_mask: FileEntry
    offsets: FileEntry


class Meta(_Record):
    """The part of meta.json that is read back; the rest is for people."""

    folder: str
    records: int
    dialogues: dict[str, NonNegativeInt]  # what became of them: the keys of OUTCOMES
    content_sha256: str
    splits: dict[Annotated[str, Field(pattern="^(train|val)$")], SplitEntry] = Field(min_length=2)


@dataclass(frozen=True)
class TokenCache:
    """The token files of one source."""

    folder: Path
    meta: Meta
    V: int
    index: HashIndex

    def open(self, split: str) -> TokenFiles:
        """Map a split. DataError if a file is damaged; one unchanged since its last check is not read again."""
        dtypes = get_dtypes(self.V)
        columns = {}
        for name, entry in self.meta.splits[split]:
            path = self.folder / f"{split}.{name}"
            columns[name] = _map_file(path, dtypes[name], entry.count)
            self._verify(path, entry.sha256, dtypes[name])
        self.index.save()
        return TokenFiles(**columns)

    def _verify(self, path: Path, sha256: str, dtype: str) -> None:
        largest: list[int] = []  # of each part that is read; nothing is, if the file is known
        known = self.index.sha256(
            path, final=True, check=lambda part: largest.append(int(np.frombuffer(part, dtype).max()))
        )
        if known != sha256:
            raise DataError(f"{path} is damaged: its sha256 differs from meta.json", suggest_rebuild(path))
        if path.suffix == ".ids" and max(largest, default=0) >= self.V:
            raise DataError(f"{path} has the id {max(largest)}, but V is {self.V}", suggest_rebuild(path))


def _map_file(path: Path, dtype: str, count: int) -> Tensor:
    """Map a little-endian file of `count` numbers."""
    expected = count * DTYPES[dtype].itemsize
    size = path.stat().st_size if path.is_file() else 0
    if size != expected:
        said = f"{path}: {size} bytes, but {count} x {dtype} are {expected} bytes"
        raise DataError(said, suggest_rebuild(path))
    if not count:
        return torch.empty(0, dtype=DTYPES[dtype])
    return torch.from_file(str(path), size=count, dtype=DTYPES[dtype])


def suggest_rebuild(path: Path) -> str:
    """Return the hint for a damaged file of a cache."""
    return f"delete {path.parent}; it will be rebuilt"


def get_dtypes(V: int) -> dict[str, str]:
    """Return the dtype of each column for token ids below V."""
    return {"ids": "uint16" if V <= 1 << 16 else "uint32", "target_mask": "uint8", "offsets": "int64"}


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write meta.json to the disk."""
    write_text(folder / META_FILE, json.dumps(meta | {"sha256": _hash_meta(meta)}, indent=1))


def read_meta(folder: Path) -> Meta:
    """Return the meta.json of a folder. DataError if it is damaged, or describes another folder."""
    path, hint = folder / META_FILE, suggest_rebuild(folder / META_FILE)
    try:
        content = read_json(path)
        if not isinstance(content, dict) or content.pop("sha256", None) != _hash_meta(content):
            raise DataError(f"{path} is damaged: its content does not match its hash", hint)
        meta = Meta.model_validate(content)
    except UnreadableFile as error:
        raise DataError(str(error), hint) from None
    except ValidationError as error:
        setting, why = explain_first_error(error)
        raise DataError(f"{path}: {setting:.80} does not describe token files ({why})", hint) from None
    if meta.folder != folder.name:
        raise DataError(f"{path} belongs to {meta.folder:.80}", hint)
    return meta


def _hash_meta(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()
