"""Set the import path for the scripts, exit quietly on a signal during the imports, and require .venv."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

# Replaces scripts/, where train.py would hide the package `train`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# Until train.cli.command handles signals, exit with the usual code and no traceback of the imports.
for _signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_signum) is not signal.SIG_IGN:
        signal.signal(_signum, lambda signum, _: os._exit(128 + signum))

# Worker processes of other launchers find the project too, even if it is not installed.
_paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if sys.path[0] not in _paths:
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*_paths, sys.path[0]]))

# Outside .venv, the imports that follow would end in a traceback.
_missing = [name for name in ("hydra", "pydantic", "torch") if not importlib.util.find_spec(name)]
if _missing:
    _bin = os.path.relpath(Path(sys.path[0], ".venv", "bin"))
    print(
        f"error: {sys.executable} has no {_missing[0]}: the environment of niels_gpt is not active\n"
        f"hint: source {_bin}/activate, or use {_bin}/python {sys.argv[0]} ...; make setup creates it",
        file=sys.stderr,
    )
    raise SystemExit(2)
