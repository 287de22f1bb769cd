"""A trained model that goes on or answers: found by any path to it, undisturbed by what it cannot read."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from niels_gpt.config import ModelCfg
from niels_gpt.data.readers.records import Message
from niels_gpt.errors import DataError
from niels_gpt.generation.chat import ChatSession, load_session
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import USER, BytesTokenizer


def small_session() -> ChatSession:
    return ChatSession(
        GPT(ModelCfg(V=256, T=32, C=16, L=1, H=2, d_ff=32, tie_embeddings=True)), BytesTokenizer(), chats=True
    )


def test_a_run_folder_may_be_named_like_a_checkpoint_and_is_found_from_within(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "v1.pt").symlink_to(finished_run)
    assert load_session(tmp_path / "v1.pt").tokenizer.V == 512
    for within, path in (("sft", "best.pt"), (".", "sft/best.pt"), ("pretrain", "../sft/best.pt")):
        monkeypatch.chdir(finished_run / within)
        assert load_session(Path(path)).chats


def test_a_question_that_cannot_be_read_leaves_the_conversation_as_it_was() -> None:
    session = small_session()
    list(session.reply("hi", max_tokens=2))
    before = list(session.conversation)
    with pytest.raises(DataError, match="lone surrogate"):
        list(session.reply("what is \ud800?", max_tokens=2))
    assert session.conversation == before
    list(session.reply("and now?", max_tokens=2))
    assert [message.role for message in session.conversation] == ["user", "assistant"] * 2


@pytest.mark.parametrize("said", ["", "é", "été"])
def test_a_reply_that_is_cut_short_keeps_the_question_with_the_partial_answer_or_neither(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    session = small_session()

    def interrupt() -> Iterator[int]:
        yield from [BytesTokenizer().special[USER], *said.encode(), "é".encode()[0]]
        raise KeyboardInterrupt

    chosen = interrupt()
    monkeypatch.setattr("niels_gpt.generation.generate.draw_token", lambda *_: next(chosen))
    with pytest.raises(KeyboardInterrupt):
        list(session.reply("hi"))
    assert session.conversation == ([Message("user", "hi"), Message("assistant", said)] if said else [])


@pytest.mark.parametrize("pieces", [0, 1, 2])
def test_a_conversation_alternates_after_replies_that_nobody_heard_to_the_end(pieces: int) -> None:
    session = small_session()
    left = session.reply("hi", max_tokens=9)
    said = "".join(islice(left, pieces))
    heard = [Message("user", "hi"), Message("assistant", said)] if pieces else []
    assert session.conversation == heard
    list(session.reply("and now?", max_tokens=2))
    del left
    assert session.conversation[: len(heard)] == heard
    assert [message.role for message in session.conversation[len(heard) :]] == ["user", "assistant"]
