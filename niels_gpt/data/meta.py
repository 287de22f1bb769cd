"""meta.json: the dtypes, sizes and hashes of token files, with a hash of its own, so that damage is noticed."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from niels_gpt.durable import to_platter
from niels_gpt.errors import DataError
from niels_gpt.plain import Unreadable, first_fault, read_json
from niels_gpt.writing import naming

META = "meta.json"
LARGEST = 1 << 20  # bytes of it
Dtype = TypeVar("Dtype", bound=str)
ANEW = "delete the folder; it is made anew"


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
