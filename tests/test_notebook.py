"""The notebook of the docs runs, and is stored without outputs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

DOCS = ROOT / "docs"
CELLS = json.loads((DOCS / "first_steps.ipynb").read_text(encoding="utf-8"))["cells"]


def join_cells(kind: str) -> str:
    return "\n\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == kind)


def test_the_notebook_has_no_outputs_and_its_links_lead_somewhere() -> None:
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in CELLS)
    links = re.findall(r"\]\((?!http)([^)#]*)", join_cells("markdown"))
    assert links and all((DOCS / link).exists() for link in links)


@pytest.mark.long
def test_the_notebook_trains_a_model_that_looks_back(tmp_path: Path) -> None:
    # Its cells are plain Python, so a script of them runs as they do in Jupyter, which would be 37 packages more.
    (tmp_path / "cells.py").write_text(join_cells("code") + "\nassert losses[-1] < 0.6", encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    done = subprocess.run([sys.executable, "cells.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\nHugo has a kite. The kite is" in done.stdout
