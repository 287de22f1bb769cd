"""Log the end of a sweep: its best result, where it is, how long it took, and what to do next."""

import logging
import re
import shlex
from pathlib import Path

from train.cli.output import format_duration
from train.report.findings import Findings
from train.report.rows import Row

log = logging.getLogger("niels_gpt")


def log_summary(sweep: Path, findings: Findings, seconds: float, trials: int | None) -> None:
    """Log a summary of a sweep, or a search of so many `trials`, that took so many wall `seconds`."""
    lowest = findings.best[0]
    done = sum(row.status == "finished" for row in findings.rows)
    log.info("sweep ended after %s: %d of %d jobs finished", format_duration(seconds), done, len(findings.rows))
    if best := lowest.row:
        log.info("  %-11s %s after %s tokens: %s", "best", lowest.why, f"{best.tokens or 0:,}", best.folder)
        talk = "--chat" if best.settings.get("phase") == "sft" or "sft" in best.curves else '--prompt "..."'
        log.info("  %-11s niels_gpt sample %s %s", "talk to it", shlex.quote(best.folder), talk)
        if command := _continue_run(best):
            log.info("  %-11s %s", "train more", command)
    more = f"hydra.sweeper.n_trials={2 * trials}" if trials else "more values"
    log.info("  %-11s the same command with %s; it skips finished jobs", "extend", more)
    log.info("  %-11s open %s in a browser", "compare", sweep / "sweep.html")


def _continue_run(best: Row) -> str:
    """Return the command that trains a run of one phase for as many steps again, in a new folder."""
    phase, steps = best.settings.get("phase"), best.settings.get("train.total_steps")
    if phase == "pipeline" or not steps:
        return ""
    path = f"{best.folder}/{phase}/latest.pt"
    path = path if re.fullmatch(r"[\w./-]+", path) else f"'{path}'"  # for Hydra; the shell has its own quotes
    words = [word for word in shlex.split(best.command) if not word.startswith("train.total_steps=")]
    return shlex.join([*words, f"resume={path}", f"train.total_steps={2 * steps}"])
