"""Tokenizers as others make them: of GPT-2's and of Llama 3's kind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, trainers
from tokenizers import pre_tokenizers as pre

TEXTS = ["the cat sat on the mat, the dog sat on 1234 cats\nnaïve café 漢字 😀 it's def f(x):\n    return x\n" * 3]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
RESERVED = tuple(f"<|reserved_special_token_{n}|>" for n in range(5))
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>")
LLAMA_TEMPLATE = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>'"
    "+ message['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor %}"
)


def make_gpt2(path: Path, special: Sequence[str] = ("<|endoftext|>",)) -> Tokenizer:
    """Write a file in the older form: its special tokens end the vocabulary, and a merge is one text."""
    bpe = _train(models.BPE(), pre.ByteLevel(add_prefix_space=False), special)
    content: Any = json.loads(bpe.to_str())
    model = content["model"]
    model |= {"vocab": bpe.get_vocab(), "merges": [" ".join(pair) for pair in model["merges"]]}
    model |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    del model["type"]
    path.write_text(json.dumps(content), encoding="utf-8")
    return bpe


def make_llama3(path: Path) -> Tokenizer:
    """Write a file whose special tokens follow the vocabulary, with a chat template beside it."""
    splits = [pre.Split(Regex(LLAMA_3), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    special = ("<|begin_of_text|>", "<|end_of_text|>", *RESERVED[:2], *HEADERS, *RESERVED[2:])
    bpe = _train(models.BPE(ignore_merges=True), pre.Sequence(splits), special)
    bpe.save(str(path))
    config = {"eos_token": {"content": "<|eot_id|>"}, "chat_template": LLAMA_TEMPLATE}
    path.with_name("tokenizer_config.json").write_text(json.dumps(config))
    return bpe


def _train(model: Any, pre_tokenizer: Any, special: Sequence[str]) -> Tokenizer:
    bpe, alphabet = Tokenizer(model), sorted(pre.ByteLevel.alphabet())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizer, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(TEXTS, trainer)
    bpe.add_special_tokens([*special])
    return bpe
