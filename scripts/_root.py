"""Puts the repository's root on the import path in place of scripts/, where train.py would hide `train`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
