"""Small JSON files that are written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from niels_gpt.writing import write_text


def write_json(path: Path, content: Any) -> None:
    """Replace a file's content by JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")
