"""The way from Hydra into the code: a composed config becomes a plan of runs, or is refused by name."""

import os

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from niels_gpt.errors import ConfigError
from train.choices import PlanCfg
from train.known import HELP
from train.problems import Settings, as_tuples, explain_invalid
from train.schema import RunCfg, TrainCfgSchema

__all__ = ["PlanCfg", "RunCfg", "TrainCfgSchema", "load_plan", "plan_from_settings"]  # all that a caller needs


def load_plan(cfg: DictConfig) -> list[RunCfg]:
    """Return the runs that a composed config asks for.

    Raises:
        ConfigError: one line per bad setting, in Hydra's dotted form.
    """
    tree = OmegaConf.create({key: cfg._get_node(key) for key in cfg if key != "hydra"})
    settings: Settings = OmegaConf.to_container(tree, resolve=True)  # type: ignore[assignment]
    if "hydra" in cfg:  # a whole config, before Hydra has made its folder
        settings["dir"] = cfg.hydra.run.dir
    elif HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir"):
        settings["dir"] = os.path.relpath(HydraConfig.get().runtime.output_dir)  # in a sweep, the job's own folder
    return plan_from_settings(settings)


def plan_from_settings(settings: Settings) -> list[RunCfg]:
    """Return the runs that plain settings, in the shape of PlanCfg, ask for.

    Raises:
        ConfigError: one line per bad setting, in Hydra's dotted form.
    """
    try:
        return PlanCfg.model_validate(as_tuples(settings)).plan()
    except ValidationError as error:
        raise ConfigError(explain_invalid(error, PlanCfg), HELP) from None
