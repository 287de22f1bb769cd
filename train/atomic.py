"""Small files that are written whole or not at all."""

import json
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace a file's content; whoever reads meanwhile sees the old or the new, and a full disk the old."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Replace a file's content by JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")
