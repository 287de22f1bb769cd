"""Tokenizers as others make them: of GPT-2's and of Llama 3's kind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, processors, trainers
from tokenizers import pre_tokenizers as pre

TEXTS = [
    "the cat sat on the mat, the dog sat on 1234 cats\n" * 3,
    "naïve café 漢字 😀 it's def f(x):\n    return x\n" * 3,
]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>")
RESERVED = tuple(f"<|reserved_special_token_{n}|>" for n in range(5))
LLAMA_TEMPLATE = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>'"
    "+ message['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor %}"
)


def make_gpt2(path: Path, special: Sequence[str] = ("<|endoftext|>",)) -> Tokenizer:
    """Write a file in the older form: its special tokens end the vocabulary, and a merge is one text."""
    bpe = _train(pre.ByteLevel(add_prefix_space=False))
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    content = json.loads(bpe.to_str())
    ids = {token: bpe.get_vocab_size() + n for n, token in enumerate(special)}
    content["model"]["vocab"] |= ids
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    content["added_tokens"] = [_added(token, id) for token, id in ids.items()]
    return _write(path, content)


def make_llama3(path: Path, template: str | None = LLAMA_TEMPLATE) -> Tokenizer:
    """Write a file whose special tokens follow the vocabulary, with a chat template beside it."""
    splits = [pre.Split(Regex(LLAMA_3), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    bpe = _train(pre.Sequence(splits))
    content = json.loads(bpe.to_str())
    names = ("<|begin_of_text|>", "<|end_of_text|>", *RESERVED[:2], *HEADERS, *RESERVED[2:])
    content["added_tokens"] = [_added(name, id) for id, name in enumerate(names, bpe.get_vocab_size())]
    content["model"]["ignore_merges"] = True
    config: dict[str, Any] = {"eos_token": {"content": "<|eot_id|>"}, "chat_template": template}
    path.with_name("tokenizer_config.json").write_text(json.dumps(config))
    return _write(path, content)


def _train(pre_tokenizer: Any) -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = sorted(pre.ByteLevel.alphabet())
    bpe.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return bpe


def _added(token: str, id: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": token, **flags, "special": True}


def _write(path: Path, content: Any) -> Tokenizer:
    path.write_text(json.dumps(content), encoding="utf-8")
    return Tokenizer.from_file(str(path))
