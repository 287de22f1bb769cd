"""Read and write job.json: the overrides, the status and the error of a sweep's job."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from niels_gpt.storage import write_json
from niels_gpt.untrusted import read_json
from train.artifacts.results import WITHOUT_EFFECT, completed, settings_of
from train.config.schema import RunCfg

JOB = "job.json"
LARGEST = 1 << 20  # bytes of a record
Status = Literal["waiting", "running", "finished", "failed", "killed", "timed out", "interrupted"]


@dataclass(frozen=True)
class Job:
    """How a job stands. Its name is its folder's; `seconds` are of all attempts together.

    `command` can be pasted; `config_hash` is of the resolved settings that decide the outcome. `exit_code` is
    negative for the signal that ended the process; `reason` is a line, empty when nothing went wrong.
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


def config_hash(plan: Sequence[RunCfg]) -> str:
    """Return a hash of the settings that decide what a plan's outcome is, 16 hexadecimal digits."""
    content = [{"phase": cfg.phase} | settings_of(cfg) for cfg in plan]
    for phase in content:
        for section in phase.values():
            if isinstance(section, dict):
                for key in WITHOUT_EFFECT - {"total_steps"}:
                    section.pop(key, None)
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def is_complete(earlier: Job | None, config_hash: str, plan: Sequence[RunCfg]) -> bool:
    """Return whether nothing is left to do: it finished with settings of this hash, and its results are there."""
    done = earlier is not None and earlier.status == "finished" and earlier.config_hash == config_hash
    return done and all(completed(cfg) for cfg in plan)


def read_job(folder: Path) -> Job | None:
    """Return the job whose folder this is; an unreadable record counts as none."""
    try:
        return TypeAdapter(Job).validate_python(read_json(folder / JOB, LARGEST))
    except ValueError:  # as pydantic's errors are
        return None


def write_job(folder: Path, job: Job) -> None:
    """Write a job's record, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JOB, asdict(job))
