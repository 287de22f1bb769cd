"""Set the import path for the scripts, and exit quietly on a signal during the imports."""

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
