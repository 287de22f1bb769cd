"""What a command found out, as JSON in a new file."""

import json
import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from niels_gpt.errors import ConfigError
from niels_gpt.writing import naming


def numbered(name: str) -> Iterator[Path]:
    """Yield names to choose from: of doctor.json itself, doctor-2.json, doctor-3.json, ..."""
    path = Path(name)
    yield path
    yield from (path.with_stem(f"{path.stem}-{n}") for n in count(2))


def unused(name: str) -> Path:
    """Return the first of the numbered names that is not there yet."""
    return next(path for path in numbered(name) if not path.exists())


def report_path(asked: Path) -> Path:
    """Return `asked`, a report's new file.

    Raises:
        ConfigError: it is there already, or its folder is not.
    """
    if asked.exists():
        raise ConfigError(f"--json {asked}: it is there already", "give another name, or none")
    if not asked.parent.is_dir():
        raise ConfigError(f"--json {asked}: there is no folder {asked.parent}", "make it, or give another name")
    return asked


def write_report(path: Path, report: Any) -> None:
    """Write `report` to a new file; what is not finite is null, which is all that JSON has for it."""
    text = json.dumps(_plain(report), indent=2, allow_nan=False) + "\n"
    with naming(path), path.open("x", encoding="utf-8") as file:
        file.write(text)


def _plain(value: Any) -> Any:
    """Give JSON what it can say."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
