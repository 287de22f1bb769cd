"""Puts the repository's root on the import path, here in place of scripts/, where train.py would hide `train`."""

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

# Workers of other launchers are processes of their own, and the project need not be installed.
_paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if sys.path[0] not in _paths:
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*_paths, sys.path[0]]))
