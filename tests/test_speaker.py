"""A trained model that goes on or answers: found by any path to it, undisturbed by what it cannot read."""

from pathlib import Path

import pytest
from conftest import Run

from niels_gpt.config import ModelCfg
from niels_gpt.errors import DataError
from niels_gpt.model.gpt import GPT
from niels_gpt.speaker import Speaker, load_speaker
from niels_gpt.tokenizer import BytesTokenizer

SHORT = ("data.size=200", "data.tokenizer=bytes", "model.V=256", "train.total_steps=1", "train.warmup_steps=0")


def test_a_run_folder_may_be_named_like_a_checkpoint(run_folder: Run) -> None:
    run = run_folder(*SHORT, name="v1.pt")
    assert load_speaker(run).tokenizer.V == 256


@pytest.mark.parametrize(("within", "path"), [(".", "best.pt"), ("..", "sft/best.pt"), ("deeper", "../best.pt")])
def test_a_checkpoint_is_found_from_within_its_run(
    run_folder: Run, monkeypatch: pytest.MonkeyPatch, within: str, path: str
) -> None:
    phase = run_folder(*SHORT, experiment="smoke_sft") / "sft"
    (phase / "deeper").mkdir()
    monkeypatch.chdir(phase / within)
    assert load_speaker(Path(path)).chats


def test_a_question_that_cannot_be_read_leaves_the_conversation_as_it_was() -> None:
    speaker = Speaker(GPT(ModelCfg(V=256, T=32, C=16, L=1, H=2, d_ff=32)), BytesTokenizer(), chats=True)
    list(speaker.reply("hi", max_tokens=2))
    before = list(speaker.conversation)
    with pytest.raises(DataError, match="half a surrogate pair"):
        list(speaker.reply("what is \ud800?", max_tokens=2))
    assert speaker.conversation == before
    list(speaker.reply("and now?", max_tokens=2))
    assert [message.role for message in speaker.conversation] == ["user", "assistant"] * 2
