"""Check the settings of Hydra's sweeper and launcher that would lose jobs or hang a sweep."""

import sys
from collections.abc import Sequence
from math import inf

from omegaconf import DictConfig, OmegaConf

from niels_gpt.errors import ConfigError
from train.sweep.jobs import PlannedJob

COUNTS = ("hydra.sweeper.max_batch_size", "hydra.sweeper.n_jobs", "hydra.sweeper.n_trials")


def require_valid_limits(config: DictConfig) -> None:
    """Refuse counts below one, a time limit that is not positive, and an objective without a direction.

    Raises:
        ConfigError: naming the setting.
    """
    own = ["hydra.launcher.n_jobs"] if uses_isolated_launcher(config) else []  # joblib's -1 is all cores
    for setting in (*COUNTS, *own):
        value = OmegaConf.select(config, setting)
        if value is not None and value < 1:
            raise ConfigError(f"{setting} must be at least 1, got {value}", f"use {setting}=1")
    minutes = OmegaConf.select(config, "hydra.launcher.timeout_minutes")
    if minutes is not None and not 0 < minutes < inf:
        raise ConfigError(f"hydra.launcher.timeout_minutes must be positive, got {minutes}", "null sets no limit")
    asked = OmegaConf.select(config, "hydra.sweeper.direction")
    directions, wanted = len(asked) if OmegaConf.is_list(asked) else 1, ["minimize"] * len(config.objective)
    if asked is not None and directions != len(wanted):  # every trial would fail
        raise ConfigError(
            f"objective has {len(wanted)} values, and hydra.sweeper.direction has {directions}",
            f"add 'hydra.sweeper.direction=[{','.join(wanted)}]'",
        )


def uses_isolated_launcher(config: DictConfig) -> bool:
    """Return whether the launcher is the isolated one."""
    return all(setting in config.hydra.launcher for setting in ("n_jobs", "timeout_minutes"))


def require_a_device_each(config: DictConfig, jobs: Sequence[PlannedJob]) -> None:
    """Refuse jobs that share an mps device: they slow each other, and can exhaust its memory."""
    n_jobs = config.hydra.launcher.n_jobs if uses_isolated_launcher(config) else 1
    if n_jobs > 1 and sys.platform == "darwin" and any(cfg.device != "cpu" for job in jobs for cfg in job.plan):
        raise ConfigError(
            f"jobs on mps cannot share the device, got hydra.launcher.n_jobs={n_jobs}",
            "use device=cpu, or hydra.launcher.n_jobs=1",
        )
