"""Import older JSON configs as settings, or as an experiment for Hydra."""

import json
import re
import shlex
from pathlib import Path

import yaml

from niels_gpt.errors import ConfigError
from niels_gpt.untrusted import UnreadableFile, read_json
from train.config.load import Settings, plan_from_settings
from train.config.schema import RunCfg, TrainCfgSchema
from train.config.suggest import CONF, format_value

MAX_BYTES = 1 << 20  # of a config
EVALUATION_KEYS = ("eval_steps", "eval_batches")  # both meant batches per evaluation
SOURCE_KEYS = ("sources", "sft_sources")
PIPELINE_KEYS = ("pretrain_config_path", "sft_config_path")
SECTION_KEYS = {"model": ("model", "model_cfg"), "train": ("train", "train_cfg")}
# The older program had no other optimizer, schedule or head, and this learning rate unless a config set one.
OLDER: dict[str, Settings] = {
    "model": {"tie_embeddings": True},
    "train": {"optim": "adamw", "base_lr": 3e-4, "schedule": "cosine", "betas": [0.9, 0.95]},
}
EXPERIMENTS = CONF / "experiment"
HEAD = """# @package _global_
# Made from {name} by scripts/import_json.py
# Other options of {groups} can be chosen with it; model=... and data=... have no effect,
# since all their settings are written below.
"""


def plan_from_json(path: Path) -> list[RunCfg]:
    """Return the runs of an older JSON config; keys it lacks get the older program's recipe or our defaults.

    Raises:
        ConfigError: the file cannot be read, or has an unknown key or a value that is not allowed.
    """
    return plan_from_settings(settings_from_json(path))


def settings_from_json(path: Path) -> Settings:
    """Return an older JSON config in the shape of PlanCfg."""
    old = _read(path)
    if old.keys() & set(PIPELINE_KEYS):
        _refuse_others(path, old, PIPELINE_KEYS)
        if missing := [key for key in PIPELINE_KEYS if not isinstance(old.get(key), str)]:
            raise ConfigError(f"{path}: {', '.join(missing)} must be the path of a config", "add it")
        (_, first), (_, second) = (_read_phase(path.parent / old[key]) for key in PIPELINE_KEYS)
        phase = "pipeline"
    else:
        phase, first = _read_phase(path)
        second = first
    name = re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)[:64]
    return {"name": name, "dir": f"runs/{name}", "phase": phase, **first, "sft": second}


def _read(path: Path) -> Settings:
    try:
        old = read_json(path, MAX_BYTES)
    except UnreadableFile as error:
        raise ConfigError(str(error), "name an older JSON config") from None
    if not isinstance(old, dict):
        raise ConfigError(f"{path}: holds no JSON object", "name an older JSON config")
    if (at := (text := json.dumps(old, ensure_ascii=False)).find("${")) >= 0:  # Hydra would interpolate it
        raise ConfigError(f"{path}: {format_value(text[at:], 20)} has to be a value", "write the value itself")
    return old


def _refuse_others(path: Path, old: Settings, known: tuple[str, ...]) -> None:
    if unknown := sorted(old.keys() - set(known)):
        raise ConfigError(
            f"{path}: unknown {format_value(', '.join(unknown))}", f"known are {', '.join(sorted(known))}"
        )


def _read_phase(path: Path) -> tuple[str, Settings]:
    """Return the phase of a single config, and its model, train and data."""
    old = _read(path)
    _refuse_others(path, old, (*SECTION_KEYS["model"], *SECTION_KEYS["train"], *SOURCE_KEYS, "val_source"))
    phase = "sft" if "sft_sources" in old else "pretrain"
    model, train = (OLDER[name] | _object(path, old, keys) for name, keys in SECTION_KEYS.items())
    mixtures = {key: old[key] for key in SOURCE_KEYS if key in old}
    if "p_train" in train:
        mixtures["p_train"] = train.pop("p_train")
    weights = _object(path, mixtures, (*SOURCE_KEYS, "p_train"))
    if mixtures and not weights:
        raise ConfigError(f"{path}: {next(iter(mixtures))} names no source", "name one, or leave it out")
    _convert_evaluation(path, train)
    # Older configs knew a source by its name; its file is now looked for under data/.
    kind, ending = ("jsonl", "jsonl") if phase == "sft" else ("text", "txt")
    data: Settings = {
        "sources": [
            {"kind": kind, "name": name, "weight": weight, "files": [f"data/{name}.{ending}"]}
            for name, weight in weights.items()
        ]
    }
    if model.get("V") == 256:
        data["tokenizer"] = "bytes"
    if "val_source" in old:
        data["val_source"] = old["val_source"]
    return phase, {"model": model, "train": train, "data": data}


def _object(path: Path, old: Settings, keys: tuple[str, ...]) -> Settings:
    """Return the object under whichever of `keys` is there, or an empty one."""
    key = _only_one(path, old, keys)
    value = old[key] if key else {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key} is not a JSON object", f'write "{key}": {{...}}')
    return value


def _only_one(path: Path, old: Settings, keys: tuple[str, ...]) -> str | None:
    present = [key for key in keys if key in old]
    if len(present) > 1:
        raise ConfigError(f"{path}: {' and '.join(present)} mean one thing", "keep one of them")
    return present[0] if present else None


def _convert_evaluation(path: Path, train: Settings) -> None:
    """Turn batches per evaluation, which depended on B, into sequences, in place."""
    _refuse_others(path, train, (*TrainCfgSchema.model_fields, *EVALUATION_KEYS))
    key = _only_one(path, train, (*EVALUATION_KEYS, "eval_sequences"))
    if key in EVALUATION_KEYS:
        batches, B = train.pop(key), train.get("B", TrainCfgSchema.model_fields["B"].default)
        if type(batches) is not int or type(B) is not int:  # to isinstance, true is an int
            raise ConfigError(
                f"{path}: {key}={format_value(batches)} and B={format_value(B)} must be whole numbers",
                "write whole numbers",
            )
        train["eval_sequences"] = batches * B


def experiment_yaml(path: Path) -> str:
    """Return the experiment that makes Hydra compose an older JSON config."""
    settings = settings_from_json(path)
    plan = plan_from_settings(settings)
    first, *second = [cfg.model_dump(mode="json", include={"model", "data", "train"}) for cfg in plan]
    train = first["train"]
    options = {
        "optim": train["optim"],
        "precision": train["amp_dtype"] if train["amp"] else "off",
        "memory": "ckpt" if train["activation_checkpointing"] else "off",
        "compile": "on" if train["compile"] else "off",
    }
    chosen: Settings = {}  # by the options, so that another option can replace them
    for group, option in options.items():
        chosen |= yaml.safe_load((CONF / group / f"{option}.yaml").read_text(encoding="utf-8"))
    chosen.pop("base_lr", None)
    groups = {"phase": settings["phase"]} | options
    content: Settings = {
        "defaults": [{f"override /{group}": option} for group, option in groups.items()],
        "name": settings["name"],
        **first,
        "train": _without(train, chosen),
    }
    if second:  # it follows the first phase
        followed = first | {"train": {key: train[key] for key in chosen}}
        content["sft"] = {section: _without(values, followed[section]) for section, values in second[0].items()}
    head = HEAD.format(name=format_value(path.name), groups=", ".join(options))
    return head + str(yaml.safe_dump(content, sort_keys=False))


def _without(values: Settings, known: Settings) -> Settings:
    return {key: value for key, value in values.items() if key not in known or known[key] != value}


def describe_use(experiment: Path) -> str:
    """Return the command that runs an experiment: Hydra finds it only in a folder named `experiment`."""
    folder = experiment.resolve().parent
    if folder.name != EXPERIMENTS.name:
        return f"to run it, move it to {EXPERIMENTS}"
    elsewhere = [] if folder == EXPERIMENTS else ["--config-dir", str(folder.parent)]
    return "run it with: " + shlex.join(
        ["python", "scripts/train.py", *elsewhere, f"experiment={experiment.stem}"]
    )
