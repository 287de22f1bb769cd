"""Read the config.json of a Hugging Face Llama as the shape of a GPT; torch is not needed."""

import re
from pathlib import Path

from pydantic import ValidationError

from niels_gpt.config import ModelCfg
from niels_gpt.errors import CheckpointError
from niels_gpt.untrusted import UnreadableFile, explain_first_error, read_json
from niels_gpt.weights.paths import CONFIG

NAMES = {
    "V": "vocab_size",
    "T": "max_position_embeddings",
    "C": "hidden_size",
    "L": "num_hidden_layers",
    "H": "num_attention_heads",
    "H_kv": "num_key_value_heads",
    "d_ff": "intermediate_size",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
SUPPORTED = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
# What transformers takes for keys that are missing.
DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
HINT = "give a folder with a model of the type llama, without biases and rope scaling"


def read_llama_config(folder: Path) -> ModelCfg:
    """Return the shape of the weights in `folder`; V is the number of rows of their embedding.

    CheckpointError if config.json describes another network than ours.
    """
    path = folder / CONFIG
    try:
        content = read_json(path)
    except UnreadableFile as error:
        raise CheckpointError(str(error), HINT) from None
    if not isinstance(content, dict) or "model_type" not in content:
        what = "has no model_type" if isinstance(content, dict) else "is not a JSON object"
        raise CheckpointError(f"{path} {what}", HINT)
    config = DEFAULTS | SUPPORTED | {"rope_theta": 10000.0} | content
    odd = {key: config[key] for key, value in SUPPORTED.items() if config[key] != value}
    for key in ("rope_scaling", "rope_parameters"):  # the second since transformers 5, with rope_theta in it
        given = config.get(key) or {}
        rope = (
            {f"{key}.{name}": value for name, value in given.items()} if isinstance(given, dict) else {key: given}
        )
        config["rope_theta"] = rope.pop(f"{key}.rope_theta", config["rope_theta"])
        usual = [(f"{key}.type", "default"), (f"{key}.rope_type", "default")]
        odd |= {name: value for name, value in rope.items() if (name, value) not in usual}
    for key in sorted(odd, key=lambda key: not key.endswith("type")):  # which says most
        raise CheckpointError(f"{path}: {key:.60}={odd[key]!s:.60} is not supported", HINT)
    shape = {setting: config.get(name) for setting, name in NAMES.items()}
    shape["H_kv"] = None if shape["H_kv"] == shape["H"] else shape["H_kv"]
    try:
        cfg = ModelCfg.model_validate(shape)
    except ValidationError as error:
        setting, why = explain_first_error(error)
        reason = f"{NAMES[setting]}={shape[setting]!s:.60} cannot be used ({why})" if setting else why
        if not setting:  # a rule of ours, with advice on our settings
            reason = re.split("[;\n]", why.removeprefix("Value error, "))[0]
            reason = re.sub(r"\w+", lambda word: NAMES.get(word[0], word[0]), reason)
        raise CheckpointError(f"{path}: {reason}", HINT) from None
    if config.get("head_dim") not in (None, cfg.C // cfg.H):
        raise CheckpointError(f"{path}: head_dim={config['head_dim']!s:.60} is not hidden_size / heads", HINT)
    return cfg
