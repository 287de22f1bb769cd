"""A folder with a Llama, ours or others', is opened as the same network, or refused by what does not fit."""

import filecmp
import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.foreign_tokenizers import make_llama3
from support.llama_folders import GROUPED, change_config, change_weights, make_llama

from niels_gpt.adopted_tokenizer import adopt_tokenizer
from niels_gpt.config import ModelCfg
from niels_gpt.errors import CheckpointError, DataError
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import SPECIAL_TOKENS, BytesTokenizer, Tokenizer, train_bpe
from niels_gpt.weights.llama import export_llama, read_llama
from niels_gpt.weights.trained_model import open_model

IDS = torch.randint(301, (2, 40), generator=torch.Generator().manual_seed(0))


def make_adopted(folder: Path) -> Tokenizer:
    make_llama3(folder / "tokenizer.json")
    return adopt_tokenizer(folder / "tokenizer.json").tokenizer


TOKENIZERS: dict[str, Callable[[Path], Tokenizer]] = {
    "bytes": lambda _: BytesTokenizer(),
    "bpe": lambda _: train_bpe(["the cat sat on the mat"], 264),
    "adopted": make_adopted,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_export_that_is_imported_and_exported_is_the_same_to_the_byte(
    tmp_path: Path, kind: str, tied: bool
) -> None:
    tokenizer = TOKENIZERS[kind](tmp_path)
    cfg = GROUPED.model_copy(update={"V": tokenizer.V, "tie_embeddings": tied, "H_kv": 3 if tied else None})
    export_llama(GPT(cfg), tokenizer, tmp_path / "first", chats=tied)
    model, read, chats = open_model(tmp_path / "first")
    assert (model.cfg, read.hash(), chats) == (cfg, tokenizer.hash(), tied)
    export_llama(model, read, tmp_path / "second", chats=chats)
    names = os.listdir(tmp_path / "first")
    assert filecmp.cmpfiles(tmp_path / "first", tmp_path / "second", names, shallow=False)[0] == names


def shard(folder: Path) -> None:
    path = folder / "model.safetensors"
    files: dict[str, dict[str, Any]] = {f"model-{n}.safetensors": {} for n in range(3)}
    for n, (name, weight) in enumerate(load_file(path).items()):
        files[f"model-{n % 3}.safetensors"][name] = weight
    path.unlink()
    for name, weights in files.items():
        save_file(weights, folder / name)
    weight_map = {name: file for file, weights in files.items() for name in weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def convert(dtype: torch.dtype) -> Callable[[Path], None]:
    def to_dtype(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file({name: weight.to(dtype) for name, weight in load_file(path).items()}, path)

    return to_dtype


NEWER = {"rope_theta": 5000.0, "rope_type": "default"}
FORMS: dict[str, tuple[Callable[[Path], None], float]] = {
    "shards": (shard, 0.0),
    "newer": (lambda folder: change_config(folder, rope_theta=7.0, rope_parameters=NEWER), 0.0),
    "older": (
        lambda folder: change_weights(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(3)),
        0.0,
    ),
    "bfloat16": (convert(torch.bfloat16), 0.05),
    "float16": (convert(torch.float16), 0.005),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_that_others_write_give_the_same_logits(tmp_path: Path, form: str) -> None:
    change, tolerance = FORMS[form]
    made = make_llama(tmp_path / "theirs")
    change(tmp_path / "theirs")
    model, tokenizer, chats = open_model(tmp_path / "theirs")
    assert (tokenizer.V, chats, model.cfg) == (305, False, GROUPED.model_copy(update={"V": 305}))
    assert {weight.dtype for weight in read_llama(tmp_path / "theirs")["model_state"].values()} == {torch.float32}
    torch.testing.assert_close(model(IDS)[..., :301], made(IDS)[..., :301], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tied", [True, False])
def test_new_special_tokens_take_the_mean_row_and_rows_without_a_token_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tied: bool
) -> None:
    caplog.set_level("INFO", logger="niels_gpt")
    made = make_llama(tmp_path / "theirs", GROUPED.model_copy(update={"tie_embeddings": tied}))
    model, tokenizer, _ = open_model(tmp_path / "theirs")
    assert (
        tokenizer.V == 305
        and "rows of 4 new tokens are the mean of the others; 19 rows had no token" in caplog.text
    )
    for now, then in ((model.embedding.weight, made.embedding.weight), (model.head_weight, made.head_weight)):
        assert torch.equal(now[:301], then[:301])
        torch.testing.assert_close(now[301:], then[:301].mean(0).expand(4, -1))
    assert {tokenizer.special[token] for token in SPECIAL_TOKENS[1:]} == {*range(301, 305)}


def change_header(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


HEAD, HEAD_NAME = torch.zeros(320, 36), "lm_head.weight"
SCALED = {"type": "linear", "factor": 2.0}
CONFIG: dict[str, dict[str, Any]] = {
    "model_type=mistral is not supported": {"model_type": "mistral"},
    "model_type=None is not supported": {"model_type": None},
    "rope_type=yarn": {"rope_parameters": NEWER | {"rope_type": "yarn"}},
    "type=linear": {"rope_scaling": SCALED},
    "factor=2.0": {"rope_parameters": NEWER | {"factor": 2.0}},
    "rope_scaling=3": {"rope_scaling": 3},
    "attention_bias=True": {"attention_bias": True},
    "mlp_bias=True": {"mlp_bias": True},
    "hidden_act=gelu": {"hidden_act": "gelu"},
    "head_dim=12": {"head_dim": 12},
    "num_key_value_heads cannot be used": {"num_key_value_heads": "two"},
    "vocab_size cannot be used": {"vocab_size": None},
    "num_hidden_layers cannot be used": {"num_hidden_layers": 10**9},
    "H=6 is not divisible by H_kv=4": {"num_key_value_heads": 4},
    "tokenizer.json has 301 entries, but vocab_size is 300": {"vocab_size": 300},
    "model.embed_tokens.weight is F32[320, 36], not [400, 36]": {"vocab_size": 400},
    "model.layers.2.input_layernorm.weight is missing, not [36]": {"num_hidden_layers": 3},
    "model.layers.0.mlp.gate_proj.weight is F32[48, 36], not [16777216, 36]": {"intermediate_size": 1 << 24},
    "lm_head.weight is F32[320, 36], not expected": {"tie_word_embeddings": True},
}


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def write_index(folder: Path, content: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)


def repeat_a_shard(folder: Path) -> None:
    shard(folder)
    shutil.copy(folder / "model-1.safetensors", folder / "model-0.safetensors")


UNREADABLE = "theirs/model.safetensors cannot be read (Error while deserializing header"
FILES: list[tuple[str, Callable[[Path], object]]] = [
    ("lm_head.weight is missing", lambda f: change_weights(f, lm_head__weight=None)),
    ("lm_head.weight is I64[320, 36]", lambda f: change_weights(f, lm_head__weight=HEAD.long())),
    ("lm_head.bias is F32[320], not expected", lambda f: change_weights(f, lm_head__bias=HEAD[:, 0].clone())),
    (
        "model.safetensors is missing, or not a file",
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
    ),
    (UNREADABLE, lambda f: os.truncate(f / "model.safetensors", 5000)),
    ("its header is larger than 4194304 bytes", lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 4096)),
    (UNREADABLE, lambda f: change_header(f, lambda header: header[HEAD_NAME].update(data_offsets=[0, 1 << 60]))),
    (UNREADABLE, lambda f: change_header(f, lambda header: header[HEAD_NAME].update(shape=[1 << 60, 36]))),
    (
        UNREADABLE,
        lambda f: change_header(f, lambda header: header.update({HEAD_NAME: header["model.norm.weight"]})),
    ),
    ("model.safetensors is missing, or not a file", lambda f: make_pipe(f / "model.safetensors")),
    (
        "theirs/x.safetensors is missing, or not a file",
        lambda f: write_index(f, '{"weight_map": {"a": "../x.safetensors"}}'),
    ),
    (
        "x.safetensors is missing, or not a file",
        lambda f: write_index(f, '{"weight_map": {"a": "x.safetensors"}}'),
    ),
    ("model-1.safetensors: model.embed_tokens.weight is in another file too", repeat_a_shard),
    ("index.json has no weight_map", lambda f: write_index(f, '{"weight_map": [1]}')),
    ("config.json:1:2: invalid JSON", lambda f: (f / "config.json").write_text("{")),
    ("config.json: not a regular file", lambda f: make_pipe(f / "config.json")),
    ("tokenizer.json: cannot be used", lambda f: (f / "tokenizer.json").write_text("[]")),
    ("tokenizer.json: cannot be read", lambda f: (f / "tokenizer.json").unlink()),
]
CHANGES = [(said, partial(change_config, **changes)) for said, changes in CONFIG.items()] + FILES


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first folder that is read loads more of torch, which takes a second."""
    make_llama(folder := tmp_path_factory.mktemp("first") / "theirs")
    open_model(folder)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(("said", "change"), CHANGES)
def test_a_folder_that_does_not_fit_is_refused_by_name_within_a_second(
    tmp_path: Path, said: str, change: Callable[[Path], object]
) -> None:
    make_llama(tmp_path / "theirs")
    change(tmp_path / "theirs")
    started = time.process_time()
    with pytest.raises((CheckpointError, DataError)) as caught:
        open_model(tmp_path / "theirs")
    assert time.process_time() - started < 1
    assert said in str(caught.value) and str(tmp_path / "theirs") in str(caught.value) and caught.value.hint


def test_a_chat_template_is_never_run_and_that_of_others_does_not_chat(tmp_path: Path) -> None:
    model = GPT(ModelCfg(V=256, T=16, C=16, L=1, H=2, d_ff=16))
    export_llama(model, BytesTokenizer(), tmp_path / "out", chats=True)
    assert open_model(tmp_path / "out").chats
    (tmp_path / "out" / "chat_template.jinja").write_text("{% for n in range(10**18) %}{% endfor %}{{ 1 / 0 }}")
    assert not open_model(tmp_path / "out").chats


def test_a_folder_has_one_choice_of_weights(tmp_path: Path) -> None:
    make_llama(tmp_path / "theirs")
    for choice in ({"step": 3}, {"average": 2}, {"ema": True}):
        with pytest.raises(CheckpointError, match="has only one choice of weights"):
            open_model(tmp_path / "theirs", **choice)
