"""Import older JSON configs: as settings, or as an experiment for Hydra."""

import json
import re
import shlex
from pathlib import Path

import yaml

from niels_gpt.errors import ConfigError
from niels_gpt.untrusted import Unreadable, read_json
from train.config.load import Settings, plan_from_settings
from train.config.schema import PhaseName, RunCfg, TrainCfgSchema
from train.config.suggest import CONF, format_value

MAX_BYTES = 1 << 20  # of a config; anything larger is something else
EVALUATION_KEYS = {"eval_steps", "eval_batches"}  # both meant batches per evaluation
SOURCE_KEYS = ("sources", "sft_sources")
PIPELINE_KEYS = {"pretrain_config_path", "sft_config_path"}
SECTION_KEYS = {"model": ("model", "model_cfg"), "train": ("train", "train_cfg")}
EXPERIMENTS = CONF / "experiment"
GROUPS = ("optim", "precision", "memory", "compile")  # whose options set the section `train` alone
THE_CONFIGS_OWN = {"base_lr"}  # which optim=adamw sets, too; a model and a phase do as well
HEAD = """# @package _global_
# Made from {name} by scripts/import_json.py
# Other options of {groups} can be chosen with it; model=... and data=... change nothing,
# since the config's own shape and sources stand below.
"""


def plan_from_json(path: Path) -> list[RunCfg]:
    """Return the runs that an older JSON config asks for; keys it lacks get the schema's defaults.

    Raises:
        ConfigError: the file cannot be read, has a key that is not known, or a value that is not allowed.
    """
    return plan_from_settings(settings_from_json(path))


def settings_from_json(path: Path) -> Settings:
    """Return an older JSON config in the shape of PlanCfg, defaults filled in."""
    old = _read(path)
    if PIPELINE_KEYS & old.keys():
        _refuse_others(path, old, PIPELINE_KEYS)
        if missing := sorted(key for key in PIPELINE_KEYS if not isinstance(old.get(key), str)):
            raise ConfigError(f"{path}: {', '.join(missing)} must be the path of a config", "add it")
        first, second = (_phase(path.parent / old[key]) for key in ("pretrain_config_path", "sft_config_path"))
        phase = "pipeline"
    else:
        first = second = _phase(path)
        phase = phase_of(old)
    name = re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)[:64]
    return {"name": name, "dir": f"runs/{name}", "phase": phase, **first, "sft": second}


def phase_of(old: Settings) -> PhaseName:
    """Return the phase of a single config: SFT has sft_sources."""
    return "sft" if "sft_sources" in old else "pretrain"


def _read(path: Path) -> Settings:
    try:
        old = read_json(path, MAX_BYTES)
    except Unreadable as error:
        raise ConfigError(str(error), "name an older JSON config") from None
    if not isinstance(old, dict):
        raise ConfigError(f"{path}: holds no JSON object", "name an older JSON config")
    if (text := json.dumps(old, ensure_ascii=False)).count("${"):  # Hydra would put something in its place
        raise ConfigError(
            f"{path}: {format_value(text[text.index('${') :], 20)} has to be a value", "write the value itself"
        )
    return old


def _refuse_others(path: Path, old: Settings, known: set[str]) -> None:
    if unknown := sorted(set(old) - known):
        raise ConfigError(
            f"{path}: unknown {format_value(', '.join(unknown))}", f"known are {', '.join(sorted(known))}"
        )


def _phase(path: Path) -> Settings:
    """Return model, train and data of one phase."""
    old = _read(path)
    _refuse_others(path, old, {*sum(SECTION_KEYS.values(), ()), *SOURCE_KEYS, "val_source"})
    sections = {name: dict(_one_of(path, old, keys)) for name, keys in SECTION_KEYS.items()}
    mixtures = {key: old[key] for key in SOURCE_KEYS if key in old}
    if "p_train" in sections["train"]:
        mixtures["p_train"] = sections["train"].pop("p_train")
    weights = _one_of(path, mixtures, (*SOURCE_KEYS, "p_train"))
    if mixtures and not weights:
        raise ConfigError(f"{path}: {next(iter(mixtures))} names no source", "name one, or leave it out")
    _evaluation(path, sections["train"])
    data: Settings = {"sources": [_source(name, weight, phase_of(old)) for name, weight in weights.items()]}
    if sections["model"].get("V") == 256:
        data["tokenizer"] = "bytes"
    if "val_source" in old:
        data["val_source"] = old["val_source"]
    return {**sections, "data": data}


def _one_of(path: Path, old: Settings, keys: tuple[str, ...]) -> Settings:
    """Return the object under the one of `keys` that is there, or an empty one; two for one thing are refused."""
    there = [key for key in keys if key in old]
    if len(there) > 1:
        raise ConfigError(f"{path}: {' and '.join(there)} mean one thing", "keep one of them")
    value = old[there[0]] if there else {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {there[0]} is no JSON object", f'write "{there[0]}": {{...}}')
    return value


def _evaluation(path: Path, train: Settings) -> None:
    """Turn batches per evaluation, which depended on B, into sequences, in place."""
    _refuse_others(path, train, {*TrainCfgSchema.model_fields, *EVALUATION_KEYS})
    there = [key for key in (*EVALUATION_KEYS, "eval_sequences") if key in train]
    if len(there) > 1:
        raise ConfigError(f"{path}: {' and '.join(there)} mean one thing", "keep one of them")
    B = train.get("B", TrainCfgSchema.model_fields["B"].default)
    for key in EVALUATION_KEYS & train.keys():
        if type(train[key]) is not int or type(B) is not int:  # to isinstance, true is a whole number
            raise ConfigError(
                f"{path}: {key}={format_value(train[key])} and B={format_value(B)} must be whole numbers",
                "write whole numbers",
            )
        train["eval_sequences"] = train.pop(key) * B


def _source(name: str, weight: float, phase: PhaseName) -> Settings:
    """Return a source that older configs knew by name only: its file is looked for under data/."""
    kind, ending = ("jsonl", "jsonl") if phase == "sft" else ("text", "txt")
    return {"kind": kind, "name": name, "weight": weight, "files": [f"data/{name}.{ending}"]}


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
    head = HEAD.format(name=format_value(path.name), groups=", ".join(GROUPS))
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
