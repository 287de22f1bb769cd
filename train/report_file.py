"""JSON reports of commands, each in a new file."""

import json
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
    """Return the first of the numbered names that is not taken."""
    return next(path for path in numbered(name) if not path.exists())


def report_path(asked: Path) -> Path:
    """Return `asked`, or refuse it before the work begins: it exists, or its folder does not."""
    if asked.exists() or not asked.parent.is_dir():
        said = "it is there already" if asked.exists() else f"there is no folder {asked.parent}"
        raise ConfigError(f"--json {asked}: {said}", "name a new file in a folder that exists")
    return asked


def write_report(path: Path, report: Any) -> None:
    """Write `report` to a new file; JSON has no nan or inf, so they become null."""
    finite = json.loads(json.dumps(report), parse_constant=lambda _: None)
    with naming(path), path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(finite, indent=2) + "\n")
