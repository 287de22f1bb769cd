"""Removes the hidden files that a killed process left half written."""

import logging
from collections.abc import Sequence
from pathlib import Path

from train.schema import RunCfg

log = logging.getLogger("niels_gpt")


def sweep_leftovers(plan: Sequence[RunCfg]) -> None:
    """Remove them from a run folder that this process holds: whoever wrote them has ended."""
    found = list(Path(plan[0].dir).glob(".*.json.part"))  # no others: the folder may be one in which others write
    found += [path for cfg in plan for path in cfg.out.glob(".*.part")]
    for path in found:
        path.unlink()
    if found:
        names = ", ".join(path.name for path in found)
        log.info("removed what a killed process left half written: %s", names)
