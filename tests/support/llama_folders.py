"""Folders with a Llama as others make them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support.foreign_tokenizers import make_gpt2
from torch import Tensor

from niels_gpt.config import ModelCfg
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import BytesTokenizer
from niels_gpt.weights.llama import export_llama

GROUPED = ModelCfg(V=320, T=64, C=36, L=2, H=6, H_kv=2, d_ff=48, rope_theta=5000.0, norm_eps=1e-6)


def make_llama(folder: Path, cfg: ModelCfg = GROUPED) -> GPT:
    """Write a folder with random weights, and GPT-2's kind of tokenizer of 301 entries; return the model."""
    torch.manual_seed(0)
    model = GPT(cfg).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0.5, 0.2)
    export_llama(model, BytesTokenizer(), folder)
    for name in (
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        (folder / name).unlink()
    make_gpt2(folder / "tokenizer.json")
    return model


def change_config(folder: Path, **changes: Any) -> None:
    """Change config.json; a key of None goes."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_weights(folder: Path, **changes: Tensor | None) -> None:
    """Change tensors; None removes one. In their names, __ stands for a dot."""
    path = folder / "model.safetensors"
    weights = load_file(path) | {name.replace("__", "."): weight for name, weight in changes.items()}
    save_file({name: weight for name, weight in weights.items() if weight is not None}, path)
