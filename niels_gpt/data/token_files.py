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
from niels_gpt.storage import naming, to_platter
from niels_gpt.untrusted import Unreadable, first_fault, read_json

DTYPES = {"uint16": torch.uint16, "uint32": torch.uint32, "uint8": torch.uint8, "int64": torch.int64}
CHUNK = 1 << 22  # ids looked at together when a file is checked
META = "meta.json"
LARGEST = 1 << 20  # bytes of it
Dtype = TypeVar("Dtype", bound=str)
ANEW = "delete the folder; it is made anew"


class TokenFiles(NamedTuple):
    """One split of one source. Item i is ids[starts[i] : starts[i + 1]], of which `learned` marks the targets."""

    ids: Tensor  # uint16, or uint32 where V asks for it
    learned: Tensor  # uint8; empty for documents, where every token is a target
    starts: Tensor  # int64, items + 1


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class Column(_Read, Generic[Dtype]):
    """A file of numbers."""

    dtype: Dtype
    count: int = Field(ge=0)
    sha256: str


class Columns(_Read):
    """The files of one split: token ids, marks of the targets, and where items start."""

    ids: Column[Literal["uint16", "uint32"]]
    learned: Column[Literal["uint8"]]
    starts: Column[Literal["int64"]]


def open_split(folder: Path, split: str, said: Columns, V: int, index: HashIndex) -> TokenFiles:
    """Map one split, its sizes, ids and hashes checked, so that damage is never learned from."""
    paths = {name: folder / f"{split}.{name}" for name, _ in said}
    if said.ids.dtype != ids_dtype(V):
        raise DataError(f"{folder / META}: ids of {V} entries are {ids_dtype(V)}, not {said.ids.dtype}", ANEW)
    files = TokenFiles(**{name: _map(paths[name], column.dtype, column.count) for name, column in said})
    if all(index.known(paths[name]) == column.sha256 for name, column in said):
        return files
    _require_below(files.ids, V, paths["ids"])
    for name, column in said:
        if index.sha256(paths[name], final=True) != column.sha256:
            raise DataError(f"{paths[name]} is damaged: its sha256 is not the one in meta.json", ANEW)
    _require_items(files, folder / split)
    return files


def _require_items(files: TokenFiles, path: Path) -> None:
    """Refuse starts that do not cut all of the ids into items, and marks that are not one for each id."""
    starts, ids = files.starts, len(files.ids)
    cut = [*starts[:1].tolist(), *starts[-1:].tolist()] == [0, ids] and bool((starts.diff() >= 0).all())
    if not cut or len(files.learned) not in (0, ids):
        raise DataError(f"{path}.starts and {path.name}.learned are not of the {ids} ids in {path.name}.ids", ANEW)


def _require_below(ids: Tensor, V: int, path: Path) -> None:
    """Refuse ids that no embedding has, naming the first one and its offset in tokens."""
    for first in range(0, len(ids), CHUNK):
        part = ids[first : first + CHUNK].long()
        if int(part.max()) >= V:
            offset = int((part >= V).nonzero()[0])
            raise DataError(f"{path}, offset {first + offset}: id {part[offset]} is not below model.V={V}", ANEW)


def _map(path: Path, dtype: str, count: int) -> Tensor:
    """Map a little-endian file of `count` numbers."""
    expected = count * DTYPES[dtype].itemsize
    size = path.stat().st_size if path.is_file() else -1
    if size != expected:
        there = f"{size} bytes" if size >= 0 else "missing"
        raise DataError(f"{path}: {there}, but {count} x {dtype} are {expected} bytes", ANEW)
    if not count:
        return torch.empty(0, dtype=DTYPES[dtype])
    return torch.from_file(str(path), size=count, dtype=DTYPES[dtype])


class Meta(_Read):
    """The part of meta.json that is read again; the rest is for people."""

    folder: str
    content_sha256: str
    splits: dict[Annotated[str, Field(pattern="^(train|val)$")], Columns] = Field(min_length=2)


def ids_dtype(V: int) -> str:
    """Return the type that token ids of V entries are stored in."""
    return "uint16" if V <= 1 << 16 else "uint32"


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write meta.json to the disk."""
    path = folder / META
    with naming(path), path.open("w", encoding="utf-8") as file:
        json.dump(meta | {"sha256": _hash(meta)}, file, indent=1)
        file.flush()
        to_platter(file.fileno())


def read_meta(folder: Path) -> Meta:
    """Return what `write_meta` wrote about this folder.

    Raises:
        DataError: it is damaged, of another folder, or not about token files.
    """
    path = folder / META
    try:
        said = read_json(path, LARGEST)
        if not isinstance(said, dict) or said.pop("sha256", None) != _hash(said):
            raise DataError(f"{path} is damaged: its hash is not the one that it was written with", ANEW)
        meta = Meta.model_validate(said)
    except Unreadable as error:
        raise DataError(str(error), ANEW) from None
    except ValidationError as error:
        setting, why = first_fault(error)
        raise DataError(f"{path}: {setting:.80} is not what token files have ({why})", ANEW) from None
    if meta.folder != folder.name:
        raise DataError(f"{path} belongs to {meta.folder:.80}", ANEW)
    return meta


def _hash(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()
