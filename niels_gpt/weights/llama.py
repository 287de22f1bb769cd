"""Write and read folders of Hugging Face's Llama, ours and others'; nothing in them is executed."""

import json
import logging
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from niels_gpt.adopted_tokenizer import adopt_tokenizer
from niels_gpt.config import ModelCfg
from niels_gpt.data.chat_template import JINJA
from niels_gpt.errors import CheckpointError, first_line
from niels_gpt.model.gpt import GPT
from niels_gpt.storage import add_file_name, make_folder, write_text
from niels_gpt.tokenizer import END_OF_TEXT, END_OF_TURN, SPECIAL_TOKENS, Tokenizer
from niels_gpt.untrusted import read_json
from niels_gpt.weights.llama_config import NAMES, SUPPORTED, read_llama_config
from niels_gpt.weights.paths import TOKENIZER

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
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F32", "BF16", "F16")
UNUSED = "rotary_emb.inv_freq"  # ends the names of buffers in older files
MAX_HEADER = 4 << 20  # bytes; a thousand blocks need one million
HINT = "give a folder that transformers' save_pretrained wrote; convert a pytorch_model.bin to safetensors first"
log = logging.getLogger("niels_gpt")


def to_llama_name(name: str) -> str:
    """Return the name that LlamaForCausalLM has for one of our weights."""
    return ".".join(LLAMA_NAMES.get(part, part) for part in name.split("."))


def map_llama_weights(model: GPT, dtype: Dtype) -> dict[str, Tensor]:
    """Return the weights under the names of LlamaForCausalLM; the layouts are equal."""
    return {
        to_llama_name(name): tensor.to("cpu", getattr(torch, dtype)).contiguous()
        for name, tensor in model.state_dict().items()
    }


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

    Generation stops where a text or a turn ends. After SFT a model `chats`: its tokenizer's eos token ends a turn,
    not a text. `card` becomes README.md.

    ConfigError if the folder exists. OSError if it cannot be written; nothing is left of it.
    """
    from safetensors.torch import save  # save_file drops the errno of an OSError

    text, turn = tokenizer.special[END_OF_TEXT], tokenizer.special[END_OF_TURN]
    end_ids = {"bos_token_id": text, "eos_token_id": [text, turn], "pad_token_id": text}
    ends = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TURN if chats else END_OF_TEXT, "pad_token": END_OF_TEXT}
    shape = model.cfg.model_dump() | {"H_kv": model.cfg.kv_heads}
    config = {
        "architectures": ["LlamaForCausalLM"],
        **SUPPORTED,
        **{name: shape[setting] for setting, name in NAMES.items()},
        "torch_dtype": dtype,
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # any other would add tokens, and spaces
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.cfg.T,
        "padding_side": "left",  # to generate from prompts of several lengths
        "model_input_names": ["input_ids", "attention_mask"],
    }
    texts = {
        "config.json": config | end_ids,
        "generation_config.json": end_ids,
        "tokenizer_config.json": settings | ends,
        "special_tokens_map.json": ends,
        "tokenizer.json": tokenizer.library_text(),
        "chat_template.jinja": JINJA,
        "README.md": card,
    }
    with make_folder(folder) as part:
        with add_file_name(part / WEIGHTS):
            (part / WEIGHTS).write_bytes(save(map_llama_weights(model, dtype), metadata={"format": "pt"}))
        for name, content in texts.items():
            write_text(part / name, content if isinstance(content, str) else json.dumps(content, indent=2) + "\n")


def read_llama(folder: Path) -> dict[str, Any]:
    """Return the keys of a checkpoint at step 0, with weights in float32, V as in the tokenizer, and no optimizer.

    Rows of special tokens that are new in the tokenizer become the mean of the others (Hewitt, Initializing New
    Word Embeddings for Pretrained Language Models, 2021); rows without a token are left out.

    CheckpointError if the folder holds another network than ours, or a file of it cannot be used. DataError if its
    tokenizer cannot be adopted.
    """
    cfg = read_llama_config(folder)
    tokenizer, names = adopt_tokenizer(folder / TOKENIZER)
    known = tokenizer.V - len(SPECIAL_TOKENS) + len(names)
    if known > cfg.V:
        raise CheckpointError(f"{folder}: {TOKENIZER} has {known} entries, but vocab_size is {cfg.V}", HINT)
    if any(counts := (tokenizer.V - known, cfg.V - known)):
        log.info("%s: rows of %d new tokens are the mean of the others; %d rows had no token", folder, *counts)
    weights = _read_weights(folder, cfg)
    for name in {"embedding.weight", "head.weight"} & weights.keys():
        rows = weights[name][:known]
        weights[name] = torch.cat([rows, rows.mean(0).expand(tokenizer.V - known, -1)])
    return {
        "model_cfg": cfg.model_copy(update={"V": tokenizer.V}).model_dump(),
        "train_cfg": {"tokenizer": tokenizer.hash()},
        "model_state": weights,
        "optimizer_state": {},
        "step": 0,
        "best_val_loss": None,
    }


def hash_weights(weights: dict[str, Tensor]) -> str:
    """Return a hash (16 hex digits) of float32 weights."""
    digest = sha256()
    for weight in weights.values():
        digest.update(weight.numpy().data)
    return digest.hexdigest()[:16]


def _read_weights(folder: Path, cfg: ModelCfg) -> dict[str, Tensor]:
    """Return the weights under our names. They are made only if all shapes in the files are those of `cfg`."""
    from safetensors import SafetensorError, safe_open

    shapes = _list_shapes(cfg)
    wanted = {to_llama_name(name): shape for name, shape in shapes.items()}
    found: dict[str, Any] = {}
    path = folder
    try:
        with ExitStack() as stack:
            for path in _list_files(folder):
                if not path.is_file():  # opening a FIFO would wait
                    raise CheckpointError(f"{path} is missing, or not a file", HINT)
                with path.open("rb") as header:
                    if int.from_bytes(header.read(8), "little") > MAX_HEADER:
                        raise CheckpointError(f"{path}: its header is larger than {MAX_HEADER} bytes", HINT)
                file = stack.enter_context(safe_open(path, "pt"))
                names = [name for name in [*file.keys()] if not name.endswith(UNUSED)]
                if twice := sorted(found.keys() & names):
                    raise CheckpointError(f"{path}: {twice[0]:.80} is in another file too", HINT)
                found |= {name: file.get_slice(name) for name in names}
            for name in wanted | found:
                shape, dtype = (found[name].get_shape(), found[name].get_dtype()) if name in found else (None, "")
                if shape != wanted.get(name) or dtype not in DTYPES:
                    is_, not_ = f"{dtype}{shape}" if dtype else "missing", wanted.get(name, "expected")
                    raise CheckpointError(f"{folder}: {name:.80} is {is_:.80}, not {not_}", HINT)
            return {name: found[to_llama_name(name)][:].float() for name in shapes}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)})", HINT) from None


def _list_shapes(cfg: ModelCfg) -> dict[str, list[int]]:
    """Return the shape of each weight; one block is made, on the meta device, so a forged `cfg` costs nothing."""
    with torch.device("meta"):
        weights = GPT(cfg.model_copy(update={"L": 1})).state_dict()
    return {
        name.replace("blocks.0.", f"blocks.{n}."): [*weight.shape]
        for name, weight in weights.items()
        for n in range(cfg.L if name.startswith("blocks.") else 1)
    }


def _list_files(folder: Path) -> list[Path]:
    """Return the files with weights: one, or those in this folder that the index names."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return [folder / WEIGHTS]
    try:
        return sorted({folder / Path(name).name for name in read_json(folder / INDEX)["weight_map"].values()})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / INDEX} has no weight_map ({first_line(error)})", HINT) from None
