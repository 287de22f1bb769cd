"""What the model sees of a text beyond T tokens: the newer half, cut at a question, after the system message."""

import pytest

from niels_gpt.data.chat_template import encode_prompt
from niels_gpt.data.readers.records import Message
from niels_gpt.generation.window import Window
from niels_gpt.tokenizer import BytesTokenizer

BYTES = BytesTokenizer()
SYSTEM = Message("system", "be nice")


def see(T: int, ids: list[int]) -> list[int]:
    window = Window(T, BYTES.special)
    window.extend(ids)
    assert len(window.ids) + window.dropped == len(ids)
    return window.ids


def talk(*questions: str, system: bool = True) -> list[int]:
    turns = [Message(role, text) for text in questions for role in ("user", "assistant")]
    return encode_prompt([SYSTEM] * system + turns, BYTES)


def test_a_text_loses_its_older_half_whenever_it_has_no_room() -> None:
    ids = [*range(97, 97 + 26)]
    assert see(26, ids) == ids
    assert see(8, ids[:8]) == ids[:8]
    assert see(8, ids[:9]) == ids[4:9]
    assert see(8, ids) == see(8, see(8, ids[:20]) + ids[20:]) == ids[20:]


@pytest.mark.parametrize("system", [True, False])
def test_a_conversation_loses_whole_exchanges_and_keeps_its_system_message(system: bool) -> None:
    ids = talk(*"abcdefgh", system=system)  # each exchange has 6 tokens, the system message 9
    seen = see(48, ids)
    fixed = ids[: 9 * system]
    kept = seen[len(fixed) : -1]
    assert seen[: len(fixed)] == fixed
    assert len(kept) % 6 == 0 and 18 <= len(kept) < 48
    assert seen == fixed + ids[len(ids) - len(kept) - 1 :], "the newest, each with its question"


def test_a_longer_conversation_has_the_same_cuts_so_that_its_beginning_need_not_be_computed_again() -> None:
    ids = talk(*(str(n) * 5 for n in range(40)))
    kept = changed = 0
    for n in range(65, len(ids)):
        before, after = see(64, ids[: n - 1]), see(64, ids[:n])
        same = after[:-1] == before
        kept, changed = kept + same, changed + (not same)
    assert changed <= kept / 20


def test_an_exchange_longer_than_the_context_keeps_its_end_and_its_role() -> None:
    user, assistant = BYTES.special["<|user|>"], BYTES.special["<|assistant|>"]
    question = "".join(chr(97 + n % 26) for n in range(100))
    ids = encode_prompt([SYSTEM, Message("user", question)], BYTES)
    seen = see(40, ids)
    assert seen[:10] == [*ids[:9], user] and seen[-1] == assistant
    assert BYTES.decode(seen[10:]) == question[-len(seen[10:-2]) :] and len(seen) >= 24
    seen = see(40, [*encode_prompt([SYSTEM, Message("user", "hi")], BYTES), *question.encode()])
    assert seen[:10] == [*ids[:9], assistant] and BYTES.decode(seen[10:]) == question[-len(seen[10:]) :]


def test_a_question_of_more_than_half_is_kept_with_its_answer_as_long_as_there_is_room() -> None:
    ids = encode_prompt([Message("user", "a"), Message("assistant", "b"), Message("user", "q" * 20)], BYTES)
    answer = [*b"x" * (33 - len(ids))]
    assert see(32, [*ids, *answer]) == [*ids, *answer][6:]


def test_a_system_message_longer_than_half_keeps_its_beginning() -> None:
    ids = encode_prompt([Message("system", "abcdefghijklmnopqrstuvwxyz" * 2), Message("user", "hi?")], BYTES)
    seen = see(32, ids)
    assert seen[:16] == ids[:16] and BYTES.decode(seen).endswith("hi?")


@pytest.mark.parametrize("T", range(1, 16))
def test_any_context_has_room_for_the_next_token(T: int) -> None:
    window = Window(T, BYTES.special)
    for id in [*talk("a", "bcd" * 9, "", "e"), *b"x" * 40, *talk(*"fgh")]:
        window.extend([id])
        assert len(window.ids) <= T and window.ids[-1] == id
