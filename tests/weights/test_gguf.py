"""Weights for llama.cpp: what can be told without it. tests/weights/test_other_programs.py asks it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.foreign_tokenizers import make_gpt2, make_llama3
from tokenizers import Tokenizer as Library
from tokenizers import pre_tokenizers as pre

from niels_gpt.adopted_tokenizer import adopt_tokenizer
from niels_gpt.config import ModelCfg
from niels_gpt.errors import DataError
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import BytesTokenizer, Tokenizer, train_bpe
from niels_gpt.weights.gguf import describe_vocabulary, export_gguf

BYTE_LEVEL = pre.ByteLevel(add_prefix_space=False)
DIGITS = pre.Sequence([pre.Digits(individual_digits=True), BYTE_LEVEL])


def adopt(path: Path, make: Callable[[Path], Library], pre_tokenizer: Any = None, **changed: Any) -> Tokenizer:
    """Adopt a file, made with another pre-tokenizer or other settings of its model."""
    library = make(path)
    if pre_tokenizer:
        library.pre_tokenizer = pre_tokenizer
    content = json.loads(library.to_str())
    content["model"] |= changed
    path.write_text(json.dumps(content))
    return adopt_tokenizer(path).tokenizer


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda path: BytesTokenizer(), "gpt-2"),
        (lambda path: train_bpe(["the cat"], 262), "gpt-2"),
        (lambda path: adopt(path, make_gpt2), "gpt-2"),
        (lambda path: adopt(path, make_gpt2, DIGITS), "smollm"),
        (lambda path: adopt(path, make_llama3), "llama-bpe"),
        (lambda path: adopt(path, make_llama3, ignore_merges=False), "dbrx"),
    ],
)
def test_the_vocabulary_names_the_pre_tokenizer_that_splits_alike(
    make: Callable[[Path], Tokenizer], name: str, tmp_path: Path
) -> None:
    tokenizer = make(tmp_path / "tokenizer.json")
    vocabulary = describe_vocabulary(tokenizer)
    assert vocabulary.pre_tokenizer == name
    assert len(vocabulary.tokens) == len(vocabulary.kinds) == tokenizer.V and vocabulary.merges
    for token, id in tokenizer.special.items():
        assert (vocabulary.tokens[id], vocabulary.kinds[id]) == (token, 3)


@pytest.mark.parametrize(
    "splits", [pre.Sequence([pre.Punctuation(), BYTE_LEVEL]), pre.Sequence([pre.Digits(False), BYTE_LEVEL])]
)
def test_a_tokenizer_that_llama_cpp_cannot_copy_is_refused_before_anything_is_written(
    splits: Any, tmp_path: Path
) -> None:
    tokenizer = adopt(tmp_path / "tokenizer.json", make_gpt2, splits)
    model = GPT(ModelCfg(V=tokenizer.V, T=16, C=32, L=1, H=2, d_ff=32))
    with pytest.raises(DataError, match="pre-tokenizer") as caught:
        export_gguf(model, tokenizer, tmp_path / "out", "x")
    assert caught.value.hint == "export with --to hf" and not (tmp_path / "out").exists()
