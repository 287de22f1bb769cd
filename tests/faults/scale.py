"""How much of the harness runs, and where it notes what was reached.

The suite runs a slice of a minute or two; `make faults` (NIELS_FAULTS=whole) runs all of it, notes a line for each
row of its table in the folder NIELS_FAULTS_TABLE, and prints the table.
"""

import json
import os
from pathlib import Path

WHOLE = os.environ.get("NIELS_FAULTS") == "whole"
TABLE = "NIELS_FAULTS_TABLE"


def scaled(part: int, whole: int) -> int:
    """Return how often something is tried: `part` times in the suite, `whole` by `make faults`."""
    return whole if WHOLE else part


def note(area: str, asked: str, reached: str) -> None:
    """Note a row of the table: what is tried, what was asked for, what was reached."""
    if folder := os.environ.get(TABLE):
        path = Path(folder) / f"{area.replace(' ', '_').replace('/', '_')}.json"
        path.write_text(json.dumps({"area": area, "asked": asked, "reached": reached}), encoding="utf-8")
