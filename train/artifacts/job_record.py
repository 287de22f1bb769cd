"""Read and write job.json: the overrides, the status and the error of a sweep's job."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from niels_gpt.storage import write_json
from niels_gpt.untrusted import read_json
from train.artifacts.results import NO_EFFECT, find_complete_result, select_outcome_settings
from train.config.schema import RunCfg

JOB = "job.json"
Status = Literal["waiting", "running", "finished", "failed", "killed", "timed out", "interrupted"]


@dataclass(frozen=True)
class Job:
    """The state of a job, which is named by its folder. `seconds` are those of all attempts.

    `command` can be pasted; `config_hash` covers the settings that decide the outcome. `exit_code` is negative for
    the signal that ended the process; `reason` is one line, empty unless something went wrong. `settings` are
    those of each phase, which older records lack.
    """

    number: int
    overrides: tuple[str, ...]
    command: str
    config_hash: str
    status: Status = "waiting"
    exit_code: int | None = None
    reason: str = ""
    attempts: int = 0
    seconds: float = 0.0
    settings: tuple[dict[str, Any], ...] = ()


def config_hash(plan: Sequence[RunCfg]) -> str:
    """Return a hash (16 hex digits) of the settings that decide the outcome of a plan."""
    content = [{"phase": cfg.phase} | select_outcome_settings(cfg) for cfg in plan]
    for phase in content:
        for section in phase.values():
            if isinstance(section, dict):
                for key in NO_EFFECT:
                    section.pop(key, None)
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def is_complete(earlier: Job | None, config_hash: str, plan: Sequence[RunCfg]) -> bool:
    """Return whether a job finished with settings of this hash, and its results exist."""
    done = earlier is not None and earlier.status == "finished" and earlier.config_hash == config_hash
    return done and all(find_complete_result(cfg) for cfg in plan)


def read_job(folder: Path) -> Job | None:
    """Return the job of a folder, or None if its record is missing or cannot be read."""
    try:
        return TypeAdapter(Job).validate_python(read_json(folder / JOB))
    except ValueError:  # as pydantic's errors are
        return None


def write_job(folder: Path, job: Job) -> None:
    """Write the record of a job."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JOB, asdict(job))
