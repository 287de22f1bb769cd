"""What Hydra's sweeper and launcher are asked for, checked before a sweep begins: they would fail halfway."""

import sys
from collections.abc import Iterator, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from niels_gpt.errors import ConfigError, first_line
from train.known import shown
from train.sweep.plan import PlannedJob

DIRECTIONS = ("minimize", "maximize")
ONE_BY_ONE = "1 carries out one job after the other"
AT_LEAST_ONE = {
    "hydra.sweeper.max_batch_size": "null starts all jobs together",
    "hydra.sweeper.n_jobs": "1 tries one after the other",
    "hydra.sweeper.n_trials": "n_trials=20 tries 20 jobs",
    "hydra.launcher.timeout_min": "it is the minutes that a job may take",
    "hydra.launcher.cpus_per_task": "it is the cores of a job",
    "hydra.launcher.array_parallelism": ONE_BY_ONE,
}


def require_possible(config: DictConfig) -> None:
    """Refuse settings of the sweeper or the launcher that no sweep can be carried out with.

    Raises:
        ConfigError: which one, and what would do.
    """
    for setting, way_out in AT_LEAST_ONE.items():
        value = OmegaConf.select(config, setting)
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"{setting}={value} is less than 1", way_out)
    if "max_failure_rate" in config.hydra.sweeper:  # Optuna's
        _require_possible_search(config)
    n_jobs = OmegaConf.select(config, "hydra.launcher.n_jobs")
    counts_down = not is_ours(config)  # joblib's -1 is all cores, -2 all but one
    if n_jobs is not None and (n_jobs == 0 or (n_jobs < 0 and not counts_down)):
        raise ConfigError(f"hydra.launcher.n_jobs={n_jobs} leaves no job to run", ONE_BY_ONE)
    minutes = OmegaConf.select(config, "hydra.launcher.timeout_minutes")
    if minutes is not None and not 0 < minutes < inf:
        raise ConfigError(f"hydra.launcher.timeout_minutes={minutes} is no length of time", "null sets no limit")


def is_ours(config: DictConfig) -> bool:
    """Return whether jobs are carried out by this project's own launcher."""
    return all(setting in config.hydra.launcher for setting in ("n_jobs", "timeout_minutes"))


def require_a_device_each(config: DictConfig, jobs: Sequence[PlannedJob]) -> None:
    """Refuse jobs that share an mps device: they slow one another, and can exhaust its memory."""
    n_jobs = config.hydra.launcher.n_jobs if is_ours(config) else 1
    if n_jobs > 1 and sys.platform == "darwin" and any(cfg.device != "cpu" for job in jobs for cfg in job.plan):
        raise ConfigError(
            f"hydra.launcher.n_jobs={n_jobs} was asked for, but jobs on mps cannot share the device",
            "use device=cpu, or hydra.launcher.n_jobs=1",
        )


def _require_possible_search(config: DictConfig) -> None:
    sweeper = config.hydra.sweeper
    _require_a_direction_each(config)
    if not 0 <= sweeper.max_failure_rate <= 1:
        raise ConfigError(
            f"hydra.sweeper.max_failure_rate={sweeper.max_failure_rate} is no share of the trials",
            "1.0 goes on whatever fails",
        )
    for word in [*(f"{k}={v}" for k, v in (sweeper.params or {}).items()), *config.hydra.overrides.task]:
        if why := "".join(_unsearchable(word)):
            raise ConfigError(
                f"{shown(word)}: {why}", "train.base_lr=tag(log,interval(1e-4,1e-2)) can be searched"
            )
    if why := "".join(_unusable(sweeper.storage, Path(config.hydra.sweep.dir))):
        raise ConfigError(
            f"hydra.sweeper.storage={shown(sweeper.storage)}: {why}",
            "left out, it is study.db in the sweep's folder; sqlite:///FILE names another file",
        )


def _require_a_direction_each(config: DictConfig) -> None:
    """Refuse a search that takes another number of values than a job returns: all of its trials would fail."""
    asked = config.hydra.sweeper.direction
    named = [str(getattr(one, "name", one)) for one in (asked if OmegaConf.is_list(asked) else [asked])]
    objective, wanted = ",".join(config.objective), ",".join(["minimize"] * len(config.objective))
    way_out = f"add 'hydra.sweeper.direction=[{wanted}]'"
    if len(named) != len(config.objective):
        raise ConfigError(
            f"objective=[{objective}] gives {len(config.objective)} to minimise, "
            f"and hydra.sweeper.direction takes {len(named)}",
            way_out,
        )
    if other := [name for name in named if name not in DIRECTIONS]:
        raise ConfigError(f"hydra.sweeper.direction={shown(other[0])}: only {' or '.join(DIRECTIONS)}", way_out)


def _unsearchable(word: str) -> Iterator[str]:
    """Yield why Optuna cannot search what an override spans."""
    from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override as made_from

    override = OverridesParser.create().parse_override(word)
    try:
        span: Any = made_from(override)
    except (ValueError, AssertionError, NotImplementedError) as error:  # as the plugin refuses it
        yield str(error) or "it names no values"
    else:
        if not all(isfinite(getattr(span, end, 0)) for end in ("low", "high")):
            yield "it has no end"


def _unusable(storage: Any, sweep: Path) -> Iterator[str]:
    """Yield why no study can be kept there; nothing is opened yet."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    if storage is None or str(storage).startswith("redis"):  # which Optuna has its own way to
        return
    try:
        url = create_engine(str(storage)).url
    except (SQLAlchemyError, ImportError) as error:
        yield first_line(error)
        return
    if url.drivername.startswith("sqlite") and url.database:
        folder = Path(url.database).parent
        if folder != sweep and not folder.is_dir():  # the sweep's is made when it begins
            yield f"there is no folder {folder}"
