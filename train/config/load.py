"""Check a composed Hydra config and turn it into a plan."""

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from niels_gpt.errors import ConfigError
from train.config.describe import describe_setting
from train.config.hydra_schema import register
from train.config.model_shape import follow_weights, require_shape
from train.config.plan import ComposedCfg
from train.config.schema import RunCfg
from train.config.suggest import CONF, did_you_mean, format_value, list_settings, point_to_help

Settings = dict[str, Any]
MAX_RULE = 400  # characters of a sentence in a message


def load_plan(cfg: DictConfig, overrides: Sequence[str] = (), folder: str | None = None) -> list[RunCfg]:
    """Return the runs of a composed config, in the run folder that Hydra chose, or in cfg.dir.

    With init_from, `overrides` are needed: what they do not set of the model's shape is that of the weights.

    ConfigError has a line per bad setting, in Hydra's form. Other errors as of `follow_weights`, `require_shape`.
    """
    tree = OmegaConf.create({key: cfg._get_node(key) for key in cfg if key != "hydra"})
    settings: Settings = OmegaConf.to_container(tree, resolve=True)  # type: ignore[assignment]
    if folder is not None:
        settings["dir"] = folder
    return require_shape(plan_from_settings(follow_weights(settings, overrides)), overrides)


def compose_plan(overrides: list[str]) -> list[RunCfg]:
    """Return the runs for these overrides, as `load_plan` does for a composed config."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load_plan(compose("config", overrides=overrides), overrides)


def plan_from_settings(settings: Settings) -> list[RunCfg]:
    """Return the runs of plain settings in the shape of ComposedCfg."""
    try:
        return ComposedCfg.model_validate(lists_to_tuples(settings)).plan()
    except ValidationError as error:
        details = error.errors(include_url=False)
        # A list with a bad item is called too short, too.
        parents = {detail["loc"][:-1] for detail in details if detail["loc"]}
        lines = [line for detail in details if detail["loc"] not in parents for line in _explain(detail)]
    # Leave out settings of the second phase that only follow a bad one of the first.
    lines = [line for line in lines if not (line.startswith("sft.") and line.removeprefix("sft.") in lines)]
    if len(lines) == 1 and details[0]["type"] == "value_error" and "; " in lines[0]:  # our own rule, with advice
        raise ConfigError(*lines[0].rsplit("; ", 1))
    raise ConfigError("\n".join(lines), point_to_help())


def lists_to_tuples(value: Any) -> Any:
    """Convert lists to tuples, which strict settings ask for."""
    if isinstance(value, dict):
        return {key: lists_to_tuples(item) for key, item in value.items()}
    return tuple(map(lists_to_tuples, value)) if isinstance(value, list) else value


def _explain(detail: Any) -> list[str]:
    where, given = format_value(".".join(map(str, detail["loc"]))), format_value(detail["input"])
    match detail["type"]:
        case "value_error":  # our own rules, a sentence each
            rules = [format_value(rule, MAX_RULE) for rule in str(detail["ctx"]["error"]).split("\n")]
            return [f"{where}: {rule}" if where else rule for rule in rules]
        case "missing":
            return [f"{where} is missing"]
        case "extra_forbidden":
            return [f"{where} is unknown{did_you_mean(where, list_settings(ComposedCfg))}"]
    return [f"{where}={given}: must be {describe_setting(where)[1]}"]
