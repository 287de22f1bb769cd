"""meta.json: what is known of token files, with a hash of its own, so that damage does not go unseen."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from niels_gpt.errors import DataError
from niels_gpt.plain import read_json

META = "meta.json"
LARGEST = 1 << 20  # bytes of it
ANEW = "delete the folder; it is made anew"


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write meta.json to the disk."""
    with (folder / META).open("w", encoding="utf-8") as file:
        json.dump(meta | {"sha256": _hash(meta)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_meta(folder: Path) -> dict[str, Any]:
    """Return what `write_meta` wrote of the folder of this name.

    Raises:
        DataError: it is damaged, or of another folder.
    """
    path = folder / META
    try:
        meta = read_json(path, LARGEST)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error})", ANEW) from None
    if not isinstance(meta, dict) or meta.pop("sha256", None) != _hash(meta):
        raise DataError(f"{path} is damaged: its hash is not the one that it was written with", ANEW)
    if meta["folder"] != folder.name:
        raise DataError(f"{path} belongs to {meta['folder']}", ANEW)
    return meta


def _hash(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()
