"""Small files that are written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from niels_gpt.writing import beside


def write_text(path: Path, text: str) -> None:
    """Replace a file's content; whoever reads meanwhile sees the old or the new, and a full disk the old."""
    with beside(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Replace a file's content by JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")
