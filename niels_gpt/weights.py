"""Weights on disk: reading checkpoints safely, and export for other programs."""

import errno
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from niels_gpt.config import ModelCfg
from niels_gpt.errors import CheckpointError, ConfigError, is_out_of_memory
from niels_gpt.model.blocks import NORM_EPS
from niels_gpt.model.gpt import GPT
from niels_gpt.shapes import misfit, takes_more
from niels_gpt.tokenizer import END_OF_TEXT, END_OF_TURN, Tokenizer
from niels_gpt.writing import beside, naming

CHECKPOINT_KEYS: dict[str, Any] = {
    "model_cfg": dict,
    "train_cfg": dict,
    "model_state": dict,
    "optimizer_state": dict,
    "step": int,
    "best_val_loss": float | int | None,
}
BAD_FILE = (None, errno.EINVAL, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)  # a bad offset, a bad path
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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the six keys of a checkpoint, all tensors on the CPU.

    The CRC-32 of every record is checked first, which torch's reader leaves out, and nothing in the file is
    executed (weights_only).

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint of this project, or its weights are not those
            of its settings.
        OSError: it cannot be read now; that, as too little memory, says nothing against the file.
    """
    if path.exists() and not path.is_file():  # a FIFO would be waited for
        raise CheckpointError(f"{path}: not a regular file", "give the path of a .pt file of a run")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                raise CheckpointError(f"{path} is damaged (it holds more than its size)", _way_out(path))
            if broken := archive.testzip():
                raise CheckpointError(f"{path} is damaged (bad CRC-32 of {broken})", _way_out(path))
        return _required(torch.load(path, map_location="cpu", weights_only=True), path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint", _way_out(path)) from None
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and torch raise many kinds for the one thing: a damaged file
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno not in BAD_FILE):
            raise  # the file may be a good one
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read ({reason})", _way_out(path)) from error


def _required(saved: Any, path: Path) -> dict[str, Any]:
    """Return what was loaded from `path`, if it is what a run saves; a model may then be made of it."""
    if not isinstance(saved, dict) or set(saved) != set(CHECKPOINT_KEYS):
        raise CheckpointError(
            f"{path} is no checkpoint of niels_gpt", f"it must hold {', '.join(CHECKPOINT_KEYS)}"
        )
    if wrong := [key for key, kinds in CHECKPOINT_KEYS.items() if not isinstance(saved[key], kinds)]:
        raise CheckpointError(
            f"{path} is no checkpoint of niels_gpt: {wrong[0]} is of a wrong kind", _way_out(path)
        )
    if takes_more(saved, path.stat().st_size):
        raise CheckpointError(
            f"{path}: its content is larger than the file, as that of no checkpoint is", _way_out(path)
        )
    if reason := misfit(saved["model_cfg"], saved["model_state"]):
        raise CheckpointError(f"{path}: {reason}", _way_out(path))
    return saved


def _way_out(path: Path) -> str:
    """Return what to use instead of a checkpoint: the others in its folder."""
    others = sorted(other.name for other in path.parent.glob("*.pt") if other != path)
    return f"others beside it: {', '.join(others)}" if others else "give the path of a .pt file of a run"


def load_model(path: Path) -> tuple[GPT, dict[str, Any]]:
    """Return the GPT of a checkpoint, on the CPU, in evaluation mode, and the train_cfg that it was saved with.

    Raises:
        CheckpointError: the file cannot be used.
    """
    saved = read_checkpoint(path)
    model = GPT(ModelCfg.model_validate(saved["model_cfg"]))
    model.load_state_dict(saved["model_state"])
    return model.eval(), saved["train_cfg"]


def phase_folder(checkpoint: Path) -> Path:
    """Return the whole path of a checkpoint's folder: its name is the phase, its parent the run's folder.

    Whole, for within that folder `best.pt` is all that one says.
    """
    return Path(os.path.abspath(checkpoint)).parent


def llama_state(model: GPT) -> dict[str, torch.Tensor]:
    """Return the weights under the names of Hugging Face's LlamaForCausalLM; the layout is the same."""
    return {
        ".".join(LLAMA_NAMES.get(part, part) for part in name.split(".")): tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
    }


def llama_config(cfg: ModelCfg, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the config.json of a LlamaForCausalLM of this shape."""
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
        # Pretraining ends a text with the one, SFT an answer with the other.
        "eos_token_id": [tokenizer.special[END_OF_TEXT], tokenizer.special[END_OF_TURN]],
    }


def export_llama(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json, model.safetensors and tokenizer.json, which programs that know Llama can load.

    Raises:
        ConfigError: the folder is there already.
        OSError: it cannot be written; nothing of it is left.
    """
    from safetensors.torch import save  # save_file makes an error without an errno of any OSError

    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} is there already", "name a new folder")
    content = {
        "model.safetensors": save(llama_state(model), metadata={"format": "pt"}),
        "config.json": json.dumps(llama_config(model.cfg, tokenizer), indent=2).encode(),
        "tokenizer.json": tokenizer.library_text().encode(),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with beside(folder) as part:
        part.mkdir()
        for name, written in content.items():
            with naming(part / name):
                (part / name).write_bytes(written)
