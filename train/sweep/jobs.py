"""Plan the jobs of a sweep: compose and check all of them before the first one starts."""

import os
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from operator import attrgetter
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict

from niels_gpt.errors import CheckpointError, ConfigError, NielsError
from train.artifacts.job_record import Job, config_hash, read_job
from train.artifacts.results import has_begun, require_unchanged, select_outcome_settings
from train.config import load_plan
from train.config.hydra_errors import Refusal, explain_refusal
from train.config.schema import RunCfg
from train.config.suggest import CONF, name_train_command
from train.sweep.folders import JobFolders, parse_number

MOST_JOBS = 1000  # of a sweep
OF_THE_SWEEP = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher")


@dataclass(frozen=True)
class PlannedJob:
    """A job that has been checked: its place in the sweep, its run folder, its plan.

    `arguments` make niels_gpt train carry it out alone, in that folder; `command` is for pasting, and takes
    another folder.
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

    def read_record(self) -> Job:
        """Return the job's record on the disk, with the present settings."""
        earlier = read_job(self.folder)
        present = {key: getattr(self, key) for key in ("number", "overrides", "command", "config_hash")}
        present["settings"] = tuple({"phase": cfg.phase} | select_outcome_settings(cfg) for cfg in self.plan)
        return Job(**(vars(earlier) if earlier else {}) | present)


PLANNED: dict[tuple[str, ...], PlannedJob] = {}  # the jobs of this process's sweep, by their overrides


def begin_sweep(config: DictConfig, loader: ConfigLoader) -> list[list[str]] | None:
    """Return the overrides of all jobs of a sweep; None if the sweeper picks them while it runs."""
    PLANNED.clear()
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(loader).parse_overrides([*params, *config.hydra.overrides.task])
    swept = [str(o.input_line).partition("=")[0].lstrip("+~") for o in overrides if o.is_sweep_override()]
    OmegaConf.register_new_resolver("job_folder", JobFolders(swept), replace=True)
    sweeper: Any = get_class(config.hydra.sweeper._target_)
    if sweeper.__name__ != "BasicSweeper":
        return None
    lists = [override.sweep_iterator() for override in overrides if override.is_discrete_sweep()]
    lengths = [sum(1 for _ in islice(values, MOST_JOBS + 1)) for values in lists]
    if not 0 < prod(lengths) <= MOST_JOBS:
        count = f"more than {MOST_JOBS}" if all(lengths) else "no"
        raise ConfigError(f"this sweep has {count} jobs", "change its lists; range(1,4) gives 1, 2 and 3")
    batch: list[list[str]] = sweeper.split_arguments(overrides, None)[0]
    return batch


def plan_jobs(
    config: DictConfig, loader: ConfigLoader, batch: Sequence[Sequence[str]], first: int = 0
) -> list[PlannedJob]:
    """Return the jobs of a batch, the first with the index `first`; this process plans each only once.

    ConfigError has a line for each fault in any of them.
    """
    refusals: dict[tuple[str, ...], Exception] = {}
    for index, overrides in enumerate(map(tuple, batch), first):
        try:
            if overrides not in PLANNED:
                PLANNED[overrides] = _plan_job(config, loader, overrides, index)
        except (NielsError, *Refusal) as refusal:
            refusals[overrides] = refusal
    if refusals:
        raise _merge_refusals(refusals, batch)
    return [PLANNED[tuple(overrides)] for overrides in batch]


def _plan_job(config: DictConfig, loader: ConfigLoader, overrides: tuple[str, ...], index: int) -> PlannedJob:
    cfg = loader.load_sweep_config(config, list(overrides))
    with open_dict(cfg):
        cfg.hydra.job.num, cfg.hydra.job.id = index, f"{cfg.hydra.job.name}_{index}"
        folder = Path(cfg.hydra.sweep.dir) / str(cfg.hydra.sweep.subdir)
    if folder.parent != (sweep := Path(config.hydra.sweep.dir)):  # side by side, where the report looks
        raise ConfigError(
            f"{folder} is not directly in the sweep's folder {sweep}",
            "give a sweep one name and one dir; each job gets a sub-folder named by its swept settings",
        )
    job = _make_job(cfg, cfg.hydra, folder, index)
    require_unchanged(job.plan)
    earlier = read_job(folder)
    if has_begun(job.plan) and earlier and earlier.status != "finished" and earlier.config_hash != job.config_hash:
        raise CheckpointError(
            f"{folder} was started with different settings", "use another name=..., or remove the folder"
        )
    return job


def _merge_refusals(refusals: dict[tuple[str, ...], Exception], batch: Sequence[Sequence[str]]) -> ConfigError:
    """Return one error for all jobs that were refused, with a line for each fault."""
    shared = set[str].intersection(*map(set, batch))
    jobs: dict[str, list[str]] = {}  # by the fault
    for overrides, refusal in refusals.items():
        faults = str(refusal) if isinstance(refusal, NielsError) else explain_refusal(refusal)
        for line in faults.splitlines():
            jobs.setdefault(line, []).append(_shorten_overrides(overrides, shared))
    lines = [f"{line} (in {'; '.join(names)})" for line, names in jobs.items()]
    return ConfigError("\n".join(lines), f"{len(refusals)} of {len(batch)} jobs were refused; none was started")


def require_distinct(jobs: Sequence[PlannedJob]) -> None:
    """Refuse a sweep in which two combinations give the same job."""
    shared = set[str].intersection(*(set(job.overrides) for job in jobs))
    for key in map(attrgetter, ("folder", "config_hash")):
        names: dict[Any, str] = {}
        for job in jobs:
            name = _shorten_overrides(job.overrides, shared)
            if key(job) in names:
                raise ConfigError(
                    f"these overrides give identical jobs: {names[key(job)]} and {name}",
                    "sweep over settings that change the result, and name each value once",
                )
            names[key(job)] = name


def _shorten_overrides(overrides: Sequence[str], shared: Collection[str]) -> str:
    return ",".join([word for word in overrides if word not in shared] or overrides)


def find_job(cfg: DictConfig) -> PlannedJob | None:
    """Return the job that another launcher than ours carries out in this process; None outside of a sweep."""
    hydra: Any = HydraConfig.get()
    if OmegaConf.is_missing(hydra.job, "num"):
        return None
    folder = Path(os.path.relpath(hydra.runtime.output_dir))
    return PLANNED.get(tuple(hydra.overrides.task)) or _make_job(cfg, hydra, folder, hydra.job.num)


def _make_job(cfg: DictConfig, hydra: Any, folder: Path, index: int) -> PlannedJob:
    overrides, plan = tuple(hydra.overrides.task), load_plan(cfg, hydra.overrides.task, str(folder))
    named = parse_number(folder.name)
    own_hash = config_hash(plan)
    hydra_words = [word for word in hydra.overrides.hydra if not word.lstrip("+~").startswith(OF_THE_SWEEP)]
    common = [*_list_config_flags(hydra), *hydra_words]
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    words = [word for word in overrides if word.partition("=")[0].lstrip("+") not in ("name", "dir")]
    if any(word.startswith("sweep=") for word in words):
        words.append("hydra.mode=RUN")
    name = f"name={cfg.name[:56]}-{own_hash[:6]}"
    return PlannedJob(
        number=index + 1 if named is None else named,
        overrides=overrides,
        sweep=Path(hydra.sweep.dir),
        folder=folder,
        plan=plan,
        config_hash=own_hash,
        objective=tuple(cfg.objective),
        arguments=(*common, *overrides, "hydra.mode=RUN", f"hydra.run.dir='{quoted}'"),
        command=shlex.join([*name_train_command().split(), *common, *words, name]),
    )


def _list_config_flags(hydra: Any) -> Iterator[str]:
    """Yield the flags by which the user chose another config, or other folders of configs."""
    if hydra.job.config_name != "config":
        yield f"--config-name={hydra.job.config_name}"
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            yield f"--config-dir={source.path}"
        elif source.provider == "main" and source.path != str(CONF):
            yield f"--config-path={source.path}"
