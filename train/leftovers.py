"""What a killed process has left half written: hidden files beside the ones that they were to become."""

import logging
from collections.abc import Sequence
from pathlib import Path

from train.schema import RunCfg

OF_A_RUN = (".*.json.part",)  # the folder may be one in which others write too
OF_A_PHASE = (".*.part",)
log = logging.getLogger("niels_gpt")


def sweep_leftovers(plan: Sequence[RunCfg]) -> None:
    """Remove them from a run folder that is this process's own: whoever wrote them has ended."""
    places = [(Path(plan[0].dir), OF_A_RUN), *((cfg.out, OF_A_PHASE) for cfg in plan)]
    found = sorted(path for folder, patterns in places for pattern in patterns for path in folder.glob(pattern))
    for path in found:
        path.unlink()
    if found:
        names = ", ".join(path.name for path in found)
        log.info("removed what a killed process left half written: %s", names)
