"""Map token files and verify them against the sizes and hashes in meta.json."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from niels_gpt.data.hash_index import HashIndex
from niels_gpt.errors import DataError
from niels_gpt.storage import add_file_name, flush_to_disk
from niels_gpt.untrusted import UnreadableFile, explain_first_error, read_json

DTYPES = {"uint16": torch.uint16, "uint32": torch.uint32, "uint8": torch.uint8, "int64": torch.int64}
CHUNK = 1 << 22  # ids written or checked at a time
META = "meta.json"
MAX_META = 1 << 20  # bytes
Dtype = TypeVar("Dtype", bound=str)
REBUILD = "delete the folder; it will be built again"


class TokenFiles(NamedTuple):
    """One split of one source. Item i is ids[offsets[i] : offsets[i + 1]]; `target_mask` marks its targets."""

    ids: Tensor  # uint16, or uint32 if V needs it
    target_mask: Tensor  # uint8; empty for documents, where every token is a target
    offsets: Tensor  # int64, items + 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class FileEntry(_Record, Generic[Dtype]):
    """A file of numbers."""

    dtype: Dtype
    count: int = Field(ge=0)
    sha256: str


class SplitEntry(_Record):
    """The files of one split: token ids, target mask, and the offset of each item."""

    ids: FileEntry[Literal["uint16", "uint32"]]
    target_mask: FileEntry[Literal["uint8"]]
    offsets: FileEntry[Literal["int64"]]


def open_split(folder: Path, split: str, expected: SplitEntry, V: int, index: HashIndex) -> TokenFiles:
    """Map one split after checking its sizes, ids and hashes."""
    paths = {name: folder / f"{split}.{name}" for name, _ in expected}
    if expected.ids.dtype != ids_dtype(V):
        raise DataError(
            f"{folder / META}: ids of {V} entries are {ids_dtype(V)}, not {expected.ids.dtype}", REBUILD
        )
    files = TokenFiles(**{name: _map(paths[name], column.dtype, column.count) for name, column in expected})
    if all(index.lookup(paths[name]) == column.sha256 for name, column in expected):
        return files
    _require_below(files.ids, V, paths["ids"])
    for name, column in expected:
        if index.sha256(paths[name], final=True) != column.sha256:
            raise DataError(f"{paths[name]} is damaged: its sha256 differs from meta.json", REBUILD)
    _require_items(files, folder / split)
    return files


def _require_items(files: TokenFiles, path: Path) -> None:
    """Refuse offsets that do not cut all ids into items, and a mask that does not have one mark per id."""
    offsets, ids = files.offsets, len(files.ids)
    complete = [*offsets[:1].tolist(), *offsets[-1:].tolist()] == [0, ids]
    ordered = bool((offsets.diff() >= 0).all())
    if not complete or not ordered or len(files.target_mask) not in (0, ids):
        columns = f"{path}.offsets and {path.name}.target_mask"
        raise DataError(f"{columns} do not match the {ids} ids in {path.name}.ids", REBUILD)


def _require_below(ids: Tensor, V: int, path: Path) -> None:
    """Refuse ids of V or more, naming the first one and its offset in tokens."""
    for first in range(0, len(ids), CHUNK):
        part = ids[first : first + CHUNK].long()
        if int(part.max()) >= V:
            offset = int((part >= V).nonzero()[0])
            raise DataError(
                f"{path}, offset {first + offset}: id {part[offset]} is not below model.V={V}", REBUILD
            )


def _map(path: Path, dtype: str, count: int) -> Tensor:
    """Map a little-endian file of `count` numbers."""
    expected = count * DTYPES[dtype].itemsize
    size = path.stat().st_size if path.is_file() else -1
    if size != expected:
        found = f"{size} bytes" if size >= 0 else "missing"
        raise DataError(f"{path}: {found}, but {count} x {dtype} are {expected} bytes", REBUILD)
    if not count:
        return torch.empty(0, dtype=DTYPES[dtype])
    return torch.from_file(str(path), size=count, dtype=DTYPES[dtype])


class Meta(_Record):
    """The part of meta.json that is read back; the rest is for people."""

    folder: str
    records: int
    content_sha256: str
    splits: dict[Annotated[str, Field(pattern="^(train|val)$")], SplitEntry] = Field(min_length=2)


def ids_dtype(V: int) -> str:
    """Return the dtype in which token ids below V are stored."""
    return "uint16" if V <= 1 << 16 else "uint32"


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write meta.json to the disk."""
    path = folder / META
    with add_file_name(path), path.open("w", encoding="utf-8") as file:
        json.dump(meta | {"sha256": _hash(meta)}, file, indent=1)
        file.flush()
        flush_to_disk(file.fileno())


def read_meta(folder: Path) -> Meta:
    """Return the checked meta.json of a folder.

    Raises:
        DataError: it is damaged, belongs to another folder, or does not describe token files.
    """
    path = folder / META
    try:
        content = read_json(path, MAX_META)
        if not isinstance(content, dict) or content.pop("sha256", None) != _hash(content):
            raise DataError(f"{path} is damaged: its content does not match its hash", REBUILD)
        meta = Meta.model_validate(content)
    except UnreadableFile as error:
        raise DataError(str(error), REBUILD) from None
    except ValidationError as error:
        setting, why = explain_first_error(error)
        raise DataError(f"{path}: {setting:.80} does not describe token files ({why})", REBUILD) from None
    if meta.folder != folder.name:
        raise DataError(f"{path} belongs to {meta.folder:.80}", REBUILD)
    return meta


def _hash(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()
