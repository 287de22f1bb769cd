"""Set the import path for the scripts, and stop quietly on a signal before train.cli listens."""

import os
import signal
import sys
from pathlib import Path

# Here in place of scripts/, where train.py would hide the package `train`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# Until train.cli.command listens, nothing is begun: no traceback of whatever is being imported, and the usual exit
# code.
for _signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_signum) is not signal.SIG_IGN:
        signal.signal(_signum, lambda signum, _: os._exit(128 + signum))

# Workers of other launchers are processes of their own, and the project need not be installed.
_paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if sys.path[0] not in _paths:
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*_paths, sys.path[0]]))
