"""Export a model as a GGUF file, for llama.cpp and the programs built on it."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from niels_gpt.config import ModelCfg
from niels_gpt.data.chat_template import JINJA
from niels_gpt.errors import DataError
from niels_gpt.model.gpt import GPT
from niels_gpt.storage import make_folder, write_text
from niels_gpt.tokenizer import END_OF_TEXT, END_OF_TURN, Tokenizer
from niels_gpt.weights.llama import map_llama_weights

GgufDtype = Literal["float32", "bfloat16", "float16", "q8_0"]
GGML_TYPES: dict[GgufDtype, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0"}
GPT2, DIGITS = "the pattern of ByteLevel", "single digits"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# llama.cpp's name for a way to split text: the patterns in turn, and whether an entry needs no merges.
PRE_TOKENIZERS = {
    ((GPT2,), False): "gpt-2",
    ((DIGITS, GPT2), False): "smollm",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "dbrx",
    ((LLAMA3.replace("{1,3}", ""),), False): "qwen2",
}
NEVER = "\u00ff \u00ff"  # joins two bytes 0xFF, which UTF-8 never has: llama.cpp wants at least one merge
CHAT = "{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end_of_turn|>{{ end }}<|assistant|>"
COMPLETION = "<|end_of_text|>{{ .Prompt }}"
MODELFILE = (
    'FROM ./{file}\nTEMPLATE """{template}"""\nPARAMETER num_ctx {T}\n'
    'PARAMETER stop "<|end_of_turn|>"\nPARAMETER stop "<|end_of_text|>"\n'
)


class Vocabulary(NamedTuple):
    """A byte-level BPE as llama.cpp has it: the names and kinds of the tokens by id, and the merges."""

    pre_tokenizer: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]


def export_gguf(
    model: GPT,
    tokenizer: Tokenizer,
    folder: Path,
    name: str,
    *,
    dtype: GgufDtype = "float16",
    chats: bool = False,
    card: str = "",
) -> None:
    """Write NAME-F16.gguf, or the like, into a new folder, and a Modelfile for Ollama; `card` becomes README.md.

    After SFT a model `chats`, and the Modelfile marks turns. Norms stay in float32; with q8_0, matrices whose
    width is not a multiple of 32 are in float16. ConfigError if the folder exists. DataError if llama.cpp cannot
    split text as the tokenizer does. OSError if the folder cannot be written; nothing is left of it.
    """
    vocabulary, weights = describe_vocabulary(tokenizer), map_llama_weights(model, "float32")
    import gguf

    kind = GGML_TYPES[dtype]
    with make_folder(folder) as part:
        path = part / re.sub(r"[^\w.-]", "-", f"{name}-{kind}.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
        _add_metadata(writer, model.cfg, tokenizer, vocabulary)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.cfg.L)
        for key, weight in weights.items():
            if ".q_proj" in key or ".k_proj" in key:
                weight = interleave_halves(weight, model.cfg.H if ".q_proj" in key else model.cfg.kv_heads)
            stored = gguf.GGMLQuantizationType[kind if weight.dim() > 1 else "F32"]
            if weight.shape[-1] % gguf.GGML_QUANT_SIZES[stored][0]:
                stored = gguf.GGMLQuantizationType.F16
            data = gguf.quantize(weight.numpy(), stored)
            writer.add_tensor(names.get_name(key, (".weight",)), data, raw_dtype=stored)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        except OSError as error:  # numpy's has no number, and is of a full disk
            number = error.errno or errno.ENOSPC
            raise OSError(number, os.strerror(number), str(path)) from error
        finally:
            writer.close()
        template = CHAT if chats else COMPLETION
        write_text(part / "Modelfile", MODELFILE.format(file=path.name, template=template, T=model.cfg.T))
        write_text(part / "README.md", card)


def interleave_halves(weight: Tensor, H: int) -> Tensor:
    """Return the rows of a projection to queries or keys, (H x D, C), in the order of llama.cpp's rotation.

    It rotates neighbours within a head; ours rotates row i of the first half of a head with row i of the second.
    """
    return weight.view(H, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def describe_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Return the vocabulary of a tokenizer. DataError if llama.cpp has no pre-tokenizer like its own."""
    settings = json.loads(tokenizer.library_text())
    model, added = settings["model"], {token["id"]: token for token in settings["added_tokens"]}
    pattern = tuple(_list_patterns(settings["pre_tokenizer"])), bool(model.get("ignore_merges"))
    if pattern not in PRE_TOKENIZERS:
        raise DataError("llama.cpp does not know the pre-tokenizer of this tokenizer", "export with --to hf")
    tokens = {id: token for token, id in model["vocab"].items()} | {id: t["content"] for id, t in added.items()}
    normal, control, own = 1, 3, 4  # as gguf.TokenType has them
    kinds = [normal if id not in added else control if added[id]["special"] else own for id in range(tokenizer.V)]
    merges = [" ".join(pair) for pair in model["merges"]] or [NEVER]
    return Vocabulary(PRE_TOKENIZERS[pattern], [tokens[id] for id in range(tokenizer.V)], kinds, merges)


def _list_patterns(pre_tokenizer: Any) -> list[str]:
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [*parts]}:
            return [pattern for part in parts for pattern in _list_patterns(part)]
        case {"type": "ByteLevel", "use_regex": use_regex}:
            return [GPT2] if use_regex else []
        case {"type": "Digits", "individual_digits": True}:
            return [DIGITS]
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return [pattern]
    return ["another"]


def _add_metadata(writer: Any, cfg: ModelCfg, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    writer.add_vocab_size(cfg.V)
    writer.add_context_length(cfg.T)
    writer.add_embedding_length(cfg.C)
    writer.add_block_count(cfg.L)
    writer.add_feed_forward_length(cfg.d_ff)
    writer.add_head_count(cfg.H)
    writer.add_head_count_kv(cfg.kv_heads)
    writer.add_rope_dimension_count(cfg.C // cfg.H)
    writer.add_rope_freq_base(cfg.rope_theta)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(tokenizer.special[END_OF_TEXT])
    writer.add_eos_token_id(tokenizer.special[END_OF_TEXT])
    writer.add_eot_token_id(tokenizer.special[END_OF_TURN])
    writer.add_pad_token_id(tokenizer.special[END_OF_TEXT])
    writer.add_add_bos_token(False)
    writer.add_chat_template(JINJA)
