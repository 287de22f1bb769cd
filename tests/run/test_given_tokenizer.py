"""A run with the tokenizer of others trains, resumes, answers and is exported with it, and keeps a copy."""

import json
import os
from pathlib import Path

import pytest
from conftest import Plan, Run, carry_out, final
from support.foreign_tokenizers import make_gpt2, make_llama3

from niels_gpt.errors import CheckpointError
from niels_gpt.generation.chat import load_session
from niels_gpt.weights.llama import export_llama


def test_a_run_keeps_the_tokenizer_that_it_was_given(run_folder: Run, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    theirs = make_llama3(path)
    own = (f"data.tokenizer={path}", "data.size=200", "model.V=null")
    run_folder(*own, "train.total_steps=2", experiment="smoke_pipeline")
    folder = run_folder(*own, "sft.train.total_steps=6", "train.total_steps=2", experiment="smoke_pipeline")
    assert final(folder / "sft")["step"] == 6
    session = load_session(folder)
    assert session.chats and isinstance("".join(session.reply("How many?", max_tokens=4, seed=0)), str)
    export_llama(session.model, session.tokenizer, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    ends = [theirs.token_to_id(name) for name in ("<|end_of_text|>", "<|eot_id|>")]
    assert (config["vocab_size"], config["eos_token_id"]) == (theirs.get_vocab_size(), ends)


def test_a_run_is_not_continued_with_another_tokenizer_of_the_same_size(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    own = (f"data.tokenizer={path}", "data.size=200", "train.total_steps=1")
    make_gpt2(path, ["<|eos|>"])
    carry_out(plan(*own))
    make_gpt2(path, ["<|eos|>", "<|user|>"])
    os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"data\.tokenizer=.* is not .*run.tokenizer\.json"):
        carry_out(plan(*own, "train.total_steps=2"))
