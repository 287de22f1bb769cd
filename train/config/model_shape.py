"""The shape of a model as its tokenizer, and the weights that it starts from, decide it."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from niels_gpt.config import ModelCfg
from niels_gpt.errors import ConfigError, NielsError
from niels_gpt.untrusted import read_json
from niels_gpt.weights.llama_config import read_llama_config
from niels_gpt.weights.paths import DATA, TOKENIZER, find_phase, is_hugging_face


def count_entries(tokenizer: str) -> int | None:
    """Return the V of data.tokenizer, None for a BPE that is yet to be trained. DataError if a file is no use."""
    if tokenizer in ("bpe", "bytes"):
        return 256 if tokenizer == "bytes" else None
    from niels_gpt.adopted_tokenizer import adopt_tokenizer  # only now: takes time to import

    return adopt_tokenizer(Path(tokenizer)).tokenizer.V


def follow_weights(settings: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return composed settings with the shape of the weights of init_from; dropout stays.

    So does what the `overrides` of the command line set: everything if model=OPTION is among them. The shape is in
    a Hugging Face folder's config.json, or in the records of a run: of this run, if init_from is gone or damaged.

    ConfigError if `resume` names a Hugging Face folder. CheckpointError or DataError if one cannot be used.
    """
    if is_hugging_face(Path(settings["resume"])):
        reason = f"resume={settings['resume']} is a Hugging Face folder, which has weights, but no optimizer state"
        raise ConfigError(reason, f"start from its weights: init_from={settings['resume']}")
    given = {word.partition("=")[0].lstrip("+~") for word in overrides}
    if not settings["init_from"] or "model" in given:
        return settings
    own = Path(settings["dir"], "sft" if settings["phase"] == "sft" else "pretrain")
    try:
        shape = read_shape(Path(settings["init_from"])) or read_shape(own)
    except NielsError:
        if not (shape := read_shape(own)):
            raise
    for name, value in shape.model_dump(exclude={"dropout"}).items() if shape else ():
        if f"model.{name}" not in given:
            settings["model"][name] = value
            if f"sft.model.{name}" not in given:
                settings["sft"]["model"][name] = value
    return settings


def read_shape(path: Path) -> ModelCfg | None:
    """Return the shape of the weights at `path`: a checkpoint, or the folder of a phase, a run or of Hugging Face.

    None if no record of a run has it. CheckpointError or DataError if a Hugging Face folder cannot be used.
    """
    if is_hugging_face(path):
        V = count_entries(str(path / TOKENIZER))
        return read_llama_config(path).model_copy(update={"V": V})
    phase = Path(os.path.abspath(path.parent if path.suffix == ".pt" else find_phase(path) or path))
    with suppress(ValueError, LookupError, TypeError):  # no file, or a damaged or older one
        return ModelCfg.model_validate(read_json(phase / DATA)["model"])
    with suppress(ValueError, LookupError, TypeError):  # older runs have it only here
        results = {result["phase"]: result for result in read_json(phase.parent / "result.json")["phases"]}
        return ModelCfg.model_validate(results[phase.name]["settings"]["model"])
    return None
