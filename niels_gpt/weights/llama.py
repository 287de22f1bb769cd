"""Export a model in the Llama format."""

import json
from pathlib import Path
from typing import Any

from niels_gpt.config import ModelCfg
from niels_gpt.errors import ConfigError
from niels_gpt.model.blocks import NORM_EPS
from niels_gpt.model.gpt import GPT
from niels_gpt.storage import add_file_name, replace_atomically
from niels_gpt.tokenizer import END_OF_TEXT, END_OF_TURN, Tokenizer

LLAMA_NAMES = {
    "embedding": "model.embed_tokens",
    "blocks": "model.layers",
    "attention_norm": "input_layernorm",
    "attention": "self_attn",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward": "mlp",
    "norm": "model.norm",
    "head": "lm_head",
}


def make_llama_config(cfg: ModelCfg, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the config.json of a LlamaForCausalLM with this shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": cfg.V,
        "max_position_embeddings": cfg.T,
        "hidden_size": cfg.C,
        "intermediate_size": cfg.d_ff,
        "num_hidden_layers": cfg.L,
        "num_attention_heads": cfg.H,
        "num_key_value_heads": cfg.H,
        "rope_theta": cfg.rope_theta,
        "rms_norm_eps": NORM_EPS,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": cfg.tie_embeddings,
        "torch_dtype": "float32",
        "bos_token_id": tokenizer.special[END_OF_TEXT],
        # The first ends a pretraining text, the second an SFT answer.
        "eos_token_id": [tokenizer.special[END_OF_TEXT], tokenizer.special[END_OF_TURN]],
    }


def export_llama(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json, model.safetensors and tokenizer.json for programs that load Llama models.

    ConfigError if the folder exists. OSError if it cannot be written; nothing is left of it.
    """
    from safetensors.torch import save  # save_file drops the errno of an OSError

    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} already exists", "choose a new folder")
    weights = {  # under the names of Hugging Face's LlamaForCausalLM; the layouts are equal
        ".".join(LLAMA_NAMES.get(part, part) for part in name.split(".")): tensor.contiguous()
        for name, tensor in model.state_dict().items()
    }
    content = {
        "model.safetensors": save(weights, metadata={"format": "pt"}),
        "config.json": json.dumps(make_llama_config(model.cfg, tokenizer), indent=2).encode(),
        "tokenizer.json": tokenizer.library_text().encode(),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(folder) as part:
        part.mkdir()
        for name, data in content.items():
            with add_file_name(part / name):
                (part / name).write_bytes(data)
