"""Plan the jobs of a sweep: compose and check all of them before the first one starts."""

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from math import ceil, prod
from operator import attrgetter
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict

from niels_gpt.errors import CheckpointError, ConfigError, NielsError
from train.artifacts.job_record import Job, config_hash, read_job
from train.artifacts.results import has_begun, require_unchanged
from train.config import load_plan
from train.config.hydra_errors import Refusal, explain_refusal
from train.config.schema import RunCfg
from train.config.suggest import CONF, format_value

MOST_JOBS = 1000  # of a sweep
SEARCHPATH = "hydra.searchpath="
DIFFERENT = "sweep over settings that make a difference"
OF_THE_SWEEP = ("hydra.mode", "hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher")


@dataclass(frozen=True)
class PlannedJob:
    """A job that can be carried out: its place in the sweep, its run folder, its plan.

    `arguments` make scripts/train.py carry it out alone, in that folder; `command` is for pasting, and takes a
    folder of its own.
    """

    number: int
    overrides: tuple[str, ...]
    sweep: Path
    folder: Path
    plan: list[RunCfg]
    config_hash: str
    objective: tuple[str, ...]
    arguments: tuple[str, ...]
    command: str

    def record(self) -> Job:
        """Return the job's record as it stands, with the settings that are asked for now."""
        asked = {
            "number": self.number,
            "overrides": self.overrides,
            "command": self.command,
            "config_hash": self.config_hash,
        }
        earlier = read_job(self.folder)
        return Job(**(vars(earlier) if earlier else {}) | asked)


def batch_of(config: DictConfig, loader: ConfigLoader) -> list[list[str]] | None:
    """Return the overrides of all jobs that a sweep will have; None where its sweeper decides as it goes."""
    sweeper: Any = get_class(config.hydra.sweeper._target_)
    if sweeper.__name__ != "BasicSweeper":
        return None
    own = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    asked = [*own, *config.hydra.overrides.task]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(asked)
    for override in overrides:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(
                f"{override.input_line} is a range, and this sweeper takes lists of values",
                "list them, as train.base_lr=1e-3,2e-3, or search the range with hydra/sweeper=optuna",
            )
    sweeps = [override for override in overrides if override.is_sweep_override()]
    lengths = {override.input_line: sweep_length(override, MOST_JOBS + 1) for override in sweeps}
    for line, length in lengths.items():
        if not length:
            raise ConfigError(f"{line} has no values, so this sweep has no jobs", "range(1,4) gives 1, 2 and 3")
    if (jobs := prod(lengths.values())) > MOST_JOBS:
        raise ConfigError(
            f"this sweep has {jobs} jobs or more, and {MOST_JOBS} are the most", "sweep over fewer values"
        )
    batch: list[list[str]] = sweeper.split_arguments(overrides, None)[0]
    return batch


def sweep_length(sweep: Override, most: int) -> int:
    """Return how many values a sweep has; of a list, `most` are counted, of a range all, without making it."""
    values: Any = sweep.value()
    if isinstance(values, RangeSweep):
        start, stop, step = values.start or 0, values.stop or 0, values.step
        return max(0, ceil((stop - start) / step)) if step else most
    return sum(1 for _ in islice(sweep.sweep_iterator(), most))


def planned_jobs(
    config: DictConfig, loader: ConfigLoader, batch: Sequence[Sequence[str]], first: int = 0
) -> list[PlannedJob]:
    """Return the jobs of a batch, the first with the number `first`; each takes a sixteenth of a second.

    Raises:
        ConfigError: a line for each thing that is wrong with any of them.
    """
    jobs: list[PlannedJob] = []
    refusals: dict[tuple[str, ...], Exception] = {}
    for number, overrides in enumerate(map(tuple, batch), first):
        try:
            jobs.append(_planned_job(config, loader, overrides, number))
        except (NielsError, *Refusal) as refusal:
            refusals[overrides] = refusal
    if refusals:
        raise _refused(refusals, batch)
    for job in jobs:  # side by side, where the report looks
        if job.folder.parent != (sweep := Path(config.hydra.sweep.dir)) or job.folder.name == "..":
            raise ConfigError(
                f"{job.folder} does not lie in the sweep's folder {sweep}",
                "give a sweep one name and one dir; a sub-folder for each job is made from its overrides",
            )
    return jobs


def require_distinct(jobs: Sequence[PlannedJob]) -> None:
    """Refuse a sweep in which two combinations are one and the same job.

    Raises:
        ConfigError: which ones.
    """
    by_hash = attrgetter("config_hash")
    alike: dict[Path, list[set[str]]] = {}
    for job in jobs:
        alike.setdefault(job.folder, []).append(set(job.overrides))
    for folder, combinations in alike.items():
        if apart := sorted(set().union(*combinations) - combinations[0].intersection(*combinations)):
            raise ConfigError(
                f"{format_value(' and '.join(apart), 200)} give one and the same job, {folder}", DIFFERENT
            )
        if (times := len(combinations)) > 1:
            raise ConfigError(f"{folder} is asked for {times} times", "name each combination once")
    for _, same in groupby(sorted(jobs, key=by_hash), by_hash):
        names = [job.folder.name for job in same]
        if len(names) > 1:
            raise ConfigError(f"{' and '.join(names)} are one and the same job", DIFFERENT)


def _planned_job(config: DictConfig, loader: ConfigLoader, overrides: tuple[str, ...], number: int) -> PlannedJob:
    cfg = loader.load_sweep_config(config, list(overrides))
    with open_dict(cfg):
        cfg.hydra.job.num, cfg.hydra.job.id = number, f"{cfg.hydra.job.name}_{number}"
        folder = Path(cfg.hydra.sweep.dir) / str(cfg.hydra.sweep.subdir)
        cfg.hydra.run.dir = str(folder)  # where load_plan looks
    job = _job(cfg, cfg.hydra, folder, number)
    require_unchanged(job.plan)
    _require_same_beginning(job)
    return job


def planned_here(cfg: DictConfig) -> PlannedJob | None:
    """Return the job that another launcher than ours carries out in this process; None if this is no sweep.

    Raises:
        ConfigError: its settings cannot be carried out.
    """
    hydra: Any = HydraConfig.get()
    if OmegaConf.is_missing(hydra.job, "num"):
        return None
    return _job(cfg, hydra, Path(os.path.relpath(hydra.runtime.output_dir)), hydra.job.num)


def _job(cfg: DictConfig, hydra: Any, folder: Path, number: int) -> PlannedJob:
    overrides, plan = tuple(hydra.overrides.task), load_plan(cfg)
    own_hash = config_hash(plan)
    return PlannedJob(
        number=number,
        overrides=overrides,
        sweep=Path(hydra.sweep.dir),
        folder=folder,
        plan=plan,
        config_hash=own_hash,
        objective=tuple(cfg.objective),
        arguments=tuple(_arguments(hydra, overrides, folder)),
        command=_command(hydra, overrides, f"{cfg.name[:56]}-{own_hash[:6]}"),
    )


def _require_same_beginning(job: PlannedJob) -> None:
    """Refuse to go on with a job that was begun with other settings under the same name."""
    earlier = read_job(job.folder)
    if has_begun(job.plan) and earlier and earlier.status != "finished" and earlier.config_hash != job.config_hash:
        raise CheckpointError(
            f"{job.folder} was begun with other settings", "use another name=..., or remove the folder"
        )


def _arguments(hydra: DictConfig, overrides: Sequence[str], folder: Path) -> Iterator[str]:
    """Yield what makes scripts/train.py do one job of a sweep."""
    yield from _flags(hydra)
    yield from (word for word in hydra.overrides.hydra if not word.lstrip("+~").startswith(OF_THE_SWEEP))
    yield from overrides
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    yield from ("hydra.mode=RUN", f"hydra.run.dir='{quoted}'")


def _flags(hydra: Any) -> Iterator[str]:
    """Yield the flags by which the user chose another config, or other folders of them."""
    if hydra.job.config_name != "config":
        yield f"--config-name={hydra.job.config_name}"
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            yield f"--config-dir={source.path}"
        elif source.provider == "main" and source.path != str(CONF):
            yield f"--config-path={source.path}"


def _sources(hydra: Any) -> list[str]:
    """Return all by which the user chose where configs come from."""
    return [*_flags(hydra), *(word for word in hydra.overrides.hydra if word.startswith(SEARCHPATH))]


def _command(hydra: Any, overrides: Sequence[str], name: str) -> str:
    """Return what trains with a job's settings in a run folder of its own."""
    words = [word for word in overrides if word.partition("=")[0].lstrip("+") not in ("name", "dir")]
    if any(word.startswith("sweep=") for word in words):
        words.append("hydra.mode=RUN")
    return shlex.join(["python", "scripts/train.py", *_sources(hydra), *words, f"name={name}"])


def _refused(refusals: dict[tuple[str, ...], Exception], batch: Sequence[Sequence[str]]) -> ConfigError:
    """Return one error for all jobs that cannot be carried out: a line for each thing that is wrong."""
    common = set.intersection(*(set(overrides) for overrides in batch)) if len(batch) > 1 else set()
    jobs: dict[str, list[str]] = {}  # by what is wrong with them
    for overrides, refusal in refusals.items():
        own = " ".join(word for word in overrides if word not in common)
        said = str(refusal) if isinstance(refusal, NielsError) else explain_refusal(refusal)
        for line in said.splitlines():
            jobs.setdefault(line, []).append(own)
    lines = [f"{line} (in {'; '.join(names)})" if any(names) else line for line, names in jobs.items()]
    count = f"{len(refusals)} of {len(batch)} jobs cannot be carried out, so none was started"
    return ConfigError("\n".join(lines), count)
