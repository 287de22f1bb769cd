"""An older JSON config as an experiment, which Hydra composes to the same settings."""

import shlex
from pathlib import Path

import yaml

from train.config import plan_from_settings
from train.known import CONF, shown
from train.legacy import settings_from_json
from train.problems import Settings
from train.schema import TrainCfgSchema

EXPERIMENTS = CONF / "experiment"
GROUPS = ("optim", "precision", "memory", "compile")  # whose options set the section `train` alone
THE_CONFIGS_OWN = {"base_lr"}  # which optim=adamw sets, too; a model and a phase do as well
HEAD = """# @package _global_
# Made from {name} by scripts/import_json.py
# Other options of {groups} can be chosen with it; model=... and data=... change nothing,
# since the config's own shape and sources stand below.
"""


def experiment_yaml(path: Path) -> str:
    """Return the experiment that makes Hydra compose what an older JSON config asks for."""
    settings = settings_from_json(path)
    plan = plan_from_settings(settings)
    first, *second = [cfg.model_dump(mode="json", include={"model", "data", "train"}) for cfg in plan]
    options = {group: _option(group, first["train"]) for group in GROUPS}
    chosen = {"phase": settings["phase"], **options}
    content: Settings = {
        "defaults": [{f"override /{group}": option} for group, option in chosen.items()],
        "name": settings["name"],
        **first,
        "train": _without(first["train"], _told_by(options)),
    }
    if second:
        told = {key: first["train"][key] for key in _told_by(options)}  # the second phase follows the first
        content["sft"] = {
            section: _without(values, told if section == "train" else first[section])
            for section, values in second[0].items()
        }
    head = HEAD.format(name=shown(path.name), groups=", ".join(GROUPS))
    return head + str(yaml.safe_dump(content, sort_keys=False))


def _without(values: Settings, told: Settings) -> Settings:
    """Return what is not told already."""
    return {key: value for key, value in values.items() if key not in told or told[key] != value}


def _told_by(options: dict[str, str]) -> Settings:
    """Return what the chosen options of all groups set."""
    return {key: value for group, option in options.items() for key, value in _set_by(group)[option].items()}


def _option(group: str, train: Settings) -> str:
    """Return the option that is nearest to older settings; what a group is about stands first in its files."""
    options = _set_by(group)
    return max(options, key=lambda option: [train[key] == value for key, value in options[option].items()])


def _set_by(group: str) -> dict[str, Settings]:
    """Return what each option of a group sets: what other options do and it does not is the schema's default."""
    options = {
        path.stem: dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        for path in sorted((CONF / group).glob("*.yaml"))
    }
    keys = dict.fromkeys(key for values in options.values() for key in values if key not in THE_CONFIGS_OWN)
    default = TrainCfgSchema().model_dump(mode="json")
    return {option: {key: values.get(key, default[key]) for key in keys} for option, values in options.items()}


def way_to_run(experiment: Path) -> str:
    """Return what runs an experiment: Hydra finds it in a folder `experiment` of a folder of configs alone."""
    folder = experiment.resolve().parent
    if folder.name != EXPERIMENTS.name:
        return f"to run it, move it to {EXPERIMENTS}"
    elsewhere = [] if folder == EXPERIMENTS else ["--config-dir", str(folder.parent)]
    return "run it with: " + shlex.join(
        ["python", "scripts/train.py", *elsewhere, f"experiment={experiment.stem}"]
    )
