"""What a command found out, as JSON in a new file."""

import json
import math
from pathlib import Path
from typing import Any

from niels_gpt.errors import ConfigError


def report_path(asked: Path | None) -> Path:
    """Return where the report goes: `asked`, or doctor.json, doctor-2.json, ...: whichever is not there yet.

    Raises:
        ConfigError: `asked` is there already, or its folder is not.
    """
    if asked is None:
        names = ("doctor.json", *(f"doctor-{n}.json" for n in range(2, 1000)))
        return next(path for path in map(Path, names) if not path.exists())
    if asked.exists():
        raise ConfigError(f"--json {asked}: it is there already", "give another name, or none")
    if not asked.parent.is_dir():
        raise ConfigError(f"--json {asked}: there is no folder {asked.parent}", "make it, or give another name")
    return asked


def write_report(path: Path, report: Any) -> None:
    """Write `report` to a new file; what is not finite is null, which is all that JSON has for it."""
    text = json.dumps(_plain(report), indent=2, allow_nan=False) + "\n"
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def _plain(value: Any) -> Any:
    """Give JSON what it can say."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
