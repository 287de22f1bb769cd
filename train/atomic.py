"""Small files that are written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from niels_gpt.writing import beside, naming
from train.durable import to_platter


def write_text(path: Path, text: str) -> None:
    """Replace a file's content: a reader sees the old or the new, as does who comes after a power cut."""
    with naming(path), beside(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        to_platter(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Replace a file's content by JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")
