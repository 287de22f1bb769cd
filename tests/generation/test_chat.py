"""A trained model that goes on or answers: found by any path to it, undisturbed by what it cannot read."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

import niels_gpt
from niels_gpt.config import ModelCfg
from niels_gpt.data.readers.records import Message
from niels_gpt.errors import CheckpointError, ConfigError, DataError
from niels_gpt.generation.chat import ChatSession, load_session
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import USER, BytesTokenizer


def small_session(T: int = 32) -> ChatSession:
    torch.manual_seed(0)
    model = GPT(ModelCfg(V=256, T=T, C=16, L=1, H=2, d_ff=32, tie_embeddings=True))
    return ChatSession(model, BytesTokenizer(), chats=True)


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


def count_computed(session: ChatSession) -> list[int]:
    """Return a list that gets the number of tokens of each pass."""
    counts: list[int] = []
    session.model.embedding.register_forward_hook(lambda _, inputs, __: counts.append(inputs[0].numel()))
    return counts


def test_the_next_turn_computes_only_what_is_new() -> None:
    session = small_session(T=200)
    session.system = "Answer in a word."
    computed = count_computed(session)
    list(session.reply("hi", max_tokens=9, ignore_eos=True))
    begin = 1 + 17 + 1 + 1 + 2 + 1 + 1  # both turns, and the role of the answer
    assert computed == [begin, *[1] * 8]
    computed.clear()
    list(session.reply("and now?", max_tokens=3, ignore_eos=True))
    assert computed == [1 + 1 + 1 + 8 + 1 + 1, *[1] * 2]  # the last token, its end of turn, and the question


def test_a_conversation_that_was_changed_is_read_as_it_is_now() -> None:
    session, fresh = small_session(T=200), small_session(T=200)
    list(session.reply("hi", max_tokens=9))
    session.conversation[1] = Message("assistant", "hello")
    fresh.conversation[:] = session.conversation
    assert [*session.reply("why?", seed=3)] == [*fresh.reply("why?", seed=3)]
    del session.conversation[2:]  # to ask again
    assert "".join(session.reply("why?", seed=3)) == fresh.conversation[-1].content


def test_a_new_chat_knows_nothing_of_another_with_the_same_model() -> None:
    session = small_session(T=200)
    list(session.reply("hi", max_tokens=9))
    chat = session.chat(system="Be brief.")
    said = "".join(chat.reply("hi", max_tokens=9))
    assert (len(session.conversation), session.system) == (2, "")
    assert chat.conversation == [Message("user", "hi"), Message("assistant", said)]
    other = small_session(T=200)
    other.system = "Be brief."
    assert "".join(other.reply("hi", max_tokens=9)) == said


def test_a_long_conversation_goes_on_in_a_small_context() -> None:
    session = small_session(T=32)
    for n in range(6):
        assert "".join(session.reply(f"question {n}", max_tokens=12, ignore_eos=True))
    assert len(session.conversation) == 12


def test_a_run_is_loaded_from_its_name(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished_run.parent)
    session = niels_gpt.load(finished_run.name)
    assert "".join(session.complete("The", max_tokens=3, ignore_eos=True))
    assert "".join(session.chat().reply("Why?", max_tokens=3, ignore_eos=True))
    with pytest.raises(ConfigError, match="^there is no setting temprature$") as caught:
        session.complete("The", temprature=1)
    assert "temperature" in caught.value.hint
    with pytest.raises(ConfigError, match="^temperature must be at least 0$"):
        session.complete("The", temperature=-1)
    with pytest.raises(CheckpointError, match="cannot reply") as unable:
        list(niels_gpt.load(Path(finished_run.name, "pretrain")).reply("Why?"))
    assert "complete" in unable.value.hint


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_run_whose_tokenizer_is_lost_says_which_to_restore(
    finished_run: Path, tmp_path: Path, content: str | None
) -> None:
    (tmp_path / "sft").symlink_to(finished_run / "sft")
    if content:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.json") as caught:
        niels_gpt.load(tmp_path)
    assert caught.value.hint == "restore the run's own tokenizer.json"
