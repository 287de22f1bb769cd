"""Export a model as a folder of Hugging Face's Llama."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from niels_gpt.config import ModelCfg
from niels_gpt.data.chat_template import JINJA
from niels_gpt.model.gpt import GPT
from niels_gpt.storage import add_file_name, make_folder, write_text
from niels_gpt.tokenizer import END_OF_TEXT, END_OF_TURN, Tokenizer
from niels_gpt.weights.llama_config import NAMES, SUPPORTED

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
Dtype = Literal["float32", "bfloat16", "float16"]


def to_llama_name(name: str) -> str:
    """Return the name that LlamaForCausalLM has for one of our weights."""
    return ".".join(LLAMA_NAMES.get(part, part) for part in name.split("."))


def map_llama_weights(model: GPT, dtype: Dtype) -> dict[str, Tensor]:
    """Return the weights under the names of LlamaForCausalLM; the layouts are equal."""
    return {
        to_llama_name(name): tensor.to("cpu", getattr(torch, dtype)).contiguous()
        for name, tensor in model.state_dict().items()
    }


def make_llama_config(cfg: ModelCfg, tokenizer: Tokenizer, dtype: Dtype) -> dict[str, Any]:
    """Return the config.json of a LlamaForCausalLM with this shape."""
    shape = cfg.model_dump() | {"H_kv": cfg.kv_heads}
    return {
        "architectures": ["LlamaForCausalLM"],
        **SUPPORTED,
        **{name: shape[setting] for setting, name in NAMES.items()},
        "torch_dtype": dtype,
        **list_ends(tokenizer),
    }


def list_ends(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the ids that begin, end and pad a text; the first end is that of a text, the second of an answer."""
    end = tokenizer.special[END_OF_TEXT]
    return {"bos_token_id": end, "eos_token_id": [end, tokenizer.special[END_OF_TURN]], "pad_token_id": end}


def export_llama(
    model: GPT,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    dtype: Dtype = "float32",
    chats: bool = False,
    card: str = "",
) -> None:
    """Write a folder that transformers, and programs that read its models, load as a Llama.

    After SFT a model `chats`: its tokenizer's eos token ends a turn, not a text. `card` becomes README.md.
    ConfigError if the folder exists. OSError if it cannot be written; nothing is left of it.
    """
    from safetensors.torch import save  # save_file drops the errno of an OSError

    end = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TURN if chats else END_OF_TEXT, "pad_token": END_OF_TEXT}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # any other would add tokens, and spaces
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.cfg.T,
        "padding_side": "left",  # to generate from prompts of several lengths
        "model_input_names": ["input_ids", "attention_mask"],
    }
    texts = {
        "config.json": make_llama_config(model.cfg, tokenizer, dtype),
        "generation_config.json": list_ends(tokenizer),
        "tokenizer_config.json": settings | end,
        "special_tokens_map.json": end,
        "tokenizer.json": tokenizer.library_text(),
        "chat_template.jinja": JINJA,
        "README.md": card,
    }
    with make_folder(folder) as part:
        with add_file_name(part / "model.safetensors"):
            data = save(map_llama_weights(model, dtype), metadata={"format": "pt"})
            (part / "model.safetensors").write_bytes(data)
        for name, content in texts.items():
            write_text(part / name, content if isinstance(content, str) else json.dumps(content, indent=2) + "\n")
