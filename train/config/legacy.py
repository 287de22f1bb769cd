"""Import older JSON configs as settings, or as an experiment for Hydra."""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from niels_gpt.config import ModelCfg, SourceCfg
from niels_gpt.errors import ConfigError
from niels_gpt.untrusted import UnreadableFile, read_json
from train.config.load import Settings, plan_from_settings
from train.config.schema import RunCfg
from train.config.suggest import CONF, format_value

MAX_BYTES = 1 << 20  # of a config
# The older program's defaults; it had no other optimizer, schedule or head.
ADAMW = {"optim": "adamw", "schedule": "cosine", "betas": [0.9, 0.95]}  # as the option optim=adamw sets
PRECISION = {"amp": True, "amp_dtype": "fp16", "activation_checkpointing": False}
OPTIM = {"base_lr": 3e-4, "min_lr": 3e-5, "grad_clip": 1.0}
COUNTS = {"seed": 42, "accum_steps": 1, "eval_every": 200, "log_every": 50, "ckpt_every": 1000}
MODEL = ModelCfg(V=256, T=128, C=256, L=4, H=4, d_ff=512, dropout=0.1, tie_embeddings=True).model_dump()
SOURCES = {"pretrain": {"wiki": 0.72, "roam": 0.18, "primer": 0.1}, "sft": {"dolly": 0.5, "oasst1": 0.5}}
# Its names for public datasets, and the options of the group data that read them today.
PRESETS = {"wiki": "wikitext103", "dolly": "dolly", "dolly15k": "dolly", "oasst1": "oasst1"}


def plan_from_json(path: Path, name: str | None = None) -> list[RunCfg]:
    """Return the runs of an older JSON config; keys it lacks get the older program's defaults.

    ConfigError if the file cannot be read, or has an unknown key or a value that is not allowed.
    """
    return plan_from_settings(settings_from_json(path, name))


def settings_from_json(path: Path, name: str | None = None) -> Settings:
    """Return an older JSON config in the shape of ComposedCfg, named after the file unless `name` is given."""
    old, first_path, second_path = _read_object(path), path, path
    tuned: Settings | None = None
    if {"pretrain_config_path", "sft_config_path"} & old.keys():
        names = [old.pop(f"{phase}_config_path", None) for phase in SOURCES]
        _refuse_unknown(path, old)
        first_path, second_path = [_find_config(path, name) for name in names]
        old, tuned = _read_object(first_path), _read_object(second_path)
    elif {"pretrain", "sft"} <= old.keys():
        tuned = {key: old.pop(key) for key in ["sft", "mix_sft"] if key in old}
    phase, first = _read_phase(old, first_path, MODEL)
    second = first
    if tuned is not None:
        phase, second = "pipeline", _read_phase(tuned, second_path, first["model"], "sft")[1]
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)
    name = name or (stem if stem[0].isalpha() else f"old_{stem}")[:64]  # Hydra takes experiment=12 for a number
    return {"name": name, "dir": f"runs/{name}", "phase": phase, **first, "sft": second}


def format_experiment(path: Path, name: str | None = None) -> str:
    """Return the experiment that makes Hydra compose an older JSON config."""
    settings = settings_from_json(path, name)
    train, second = settings["train"], settings["sft"]
    options = {
        "phase": settings["phase"],
        "optim": "adamw",
        "precision": train["amp_dtype"] if train["amp"] else "off",
        "memory": "ckpt" if train["activation_checkpointing"] else "off",
    }
    # The values of these options are left out, so that other options can replace them.
    chosen = ADAMW | {key: train[key] for key in PRECISION}
    followed = {key: train[key] for key in chosen}
    content: Settings = {
        "defaults": [{f"override /{group}": option} for group, option in options.items()],
        **{key: settings[key] for key in ("name", "model", "data")},
        "train": _leave_out(train, chosen),
    }
    if settings["phase"] == "pipeline":
        content["sft"] = second | {"train": _leave_out(second["train"], followed)}
    head = [
        f"Made from {format_value(path.name)} by niels_gpt import-json.",
        "The option optim=adamw stands for the older program's AdamW, betas 0.9 and 0.95, and cosine schedule.",
        *describe_sources(plan_from_settings(settings)),
    ]
    text = "".join(f"# {line}\n" for line in ["@package _global_", *head])
    return text + str(yaml.safe_dump(content, sort_keys=False))


def describe_sources(plan: list[RunCfg]) -> list[str]:
    """Return a line for each source about where its text comes from, since older configs give only its name."""
    sources = dict.fromkeys(source for cfg in plan for source in cfg.data.sources)
    return [f"source {source.name}: {_describe_source(source)}" for source in sources]


def _describe_source(source: SourceCfg) -> str:
    if not source.files:
        return f"from the Hugging Face hub, as data={PRESETS[source.name]}; needs pip install 'niels_gpt[hf]'"
    what = "dialogues; put them" if source.kind == "jsonl" else "text; put it"
    return f"your own {what} into {', '.join(source.files)}, relative to the folder you train in"


def _leave_out(values: Settings, known: Settings) -> Settings:
    return {key: value for key, value in values.items() if key not in known or known[key] != value}


def _read_object(path: Path) -> Settings:
    try:
        old = read_json(path, MAX_BYTES)
    except UnreadableFile as error:
        raise ConfigError(str(error), "give the path of an older JSON config") from None
    old = _take(path, {"the file": old}, ["the file"], {})
    for section in ("training", "data"):  # of the later, nested shape
        inner = _take(path, old, [section], {})
        if twice := sorted(inner.keys() & old.keys()):
            raise ConfigError(f"{path}: {format_value(twice[0])} is given twice", f"remove it from {section}")
        old |= inner
    return old  # type: ignore[no-any-return]


def _find_config(pipeline: Path, name: Any) -> Path:
    """Return the config that a pipeline names.

    The older program took the path from the folder it was started in, which may be one above the pipeline.
    """
    if not isinstance(name, str):
        keys = "pretrain_config_path and sft_config_path"
        raise ConfigError(f"{pipeline}: {keys} must both be paths of configs", "add the missing one")
    for path in (Path(name), *(folder / name for folder in pipeline.absolute().parents)):
        if os.path.isfile(path):
            return path
    places = "in the current folder, in the pipeline's or in one above it"
    raise ConfigError(
        f"{pipeline}: there is no {format_value(name)} {places}", "go to the folder it is relative to"
    )


def _read_phase(old: Settings, path: Path, model: Settings, phase: str = "pretrain") -> tuple[str, Settings]:
    """Return the phase of a config of one phase, and its model, train and data."""
    if old.keys() & {"sft", "sft_sources", "mix_sft"}:
        phase = "sft"
    model = model | _take(path, old, ["model", "model_cfg"], {})
    train = _take(path, old, ["train", "train_cfg", "pretrain", "sft"], {})
    if "p_train" in train:
        old["p_train"] = train.pop("p_train")
    mixtures = ["sources", "sft_sources", "mix_pretrain", "mix_sft", "p_train"]
    weights = _take(path, old, mixtures, {}) or SOURCES[phase]
    data = {"val_source": old.pop("val_source", ""), "tokenizer": "bytes" if model["V"] == 256 else "bpe"}
    _refuse_unknown(path, old)

    B = _take(path, train, ["B", "micro_B"], 16)
    steps = _take(path, train, ["total_steps"], 20_000)
    batches = _take(path, train, ["eval_steps", "eval_batches"], 50)  # per evaluation
    own = {"B": B, "total_steps": steps, "warmup_steps": min(200, steps), "eval_sequences": batches * B}
    defaults = ADAMW | PRECISION | OPTIM | COUNTS | own
    _refuse_unknown(path, train.keys() - defaults.keys())
    train = defaults | train
    if train["amp"] is False or (train["amp"] is True and train["amp_dtype"] == "fp32"):
        train |= {"amp": False, "amp_dtype": "fp16"}  # the dtype then has no effect
    data["sources"] = [_make_source(name, phase) | {"weight": weight} for name, weight in weights.items()]
    return phase, {"model": model, "train": train, "data": data}


def _make_source(name: str, phase: str) -> Settings:
    """Return a source that an older config knew by its name: a preset, or the user's own file under data/."""
    if name in PRESETS:
        options = [yaml.safe_load((CONF / "data" / f"{o}.yaml").read_text("utf-8")) for o in ("hf", PRESETS[name])]
        return {key: value for option in options for key, value in option.items() if key != "defaults"} | {
            "name": name
        }
    kind, ending = ("jsonl", "jsonl") if phase == "sft" else ("text", "txt")
    return {"kind": kind, "name": name, "files": [f"data/{name}.{ending}"]}


def _take(path: Path, old: Settings, names: list[str], default: Any) -> Any:
    """Remove and return the one of these names that is there; it must have the type of the default."""
    present = [name for name in names if name in old]
    if len(present) > 1:
        raise ConfigError(f"{path}: has both {' and '.join(present)}", "keep one of them")
    value = old.pop(present[0]) if present else default
    if type(value) is not type(default):
        kind = "a JSON object" if isinstance(default, dict) else "a whole number"
        raise ConfigError(f"{path}: {present[0]} is not {kind}", f"correct {present[0]}")
    return value


def _refuse_unknown(path: Path, unknown: Collection[str]) -> None:
    if unknown:
        raise ConfigError(f"{path}: unknown {format_value(', '.join(sorted(unknown)))}", "remove it from the file")
