"""The chat template: encode a dialogue as token ids, and mark the learned ones.

<|system|>text<|end_of_turn|> <|user|>text<|end_of_turn|> <|assistant|>text<|end_of_turn|> (without the spaces)
"""

from collections.abc import Sequence
from typing import NamedTuple

from niels_gpt.data.readers.records import ROLES, Message, Role
from niels_gpt.tokenizer import ASSISTANT, END_OF_TURN, SYSTEM, USER, Tokenizer

ROLE_TOKENS: dict[Role, str] = dict(zip(ROLES, (SYSTEM, USER, ASSISTANT), strict=True))


class ChatTokens(NamedTuple):
    """Token ids and, for each, whether it is a target: what the assistant says and its end of turn."""

    ids: list[int]
    learned: list[bool]


def encode_turn(message: Message, tokenizer: Tokenizer) -> ChatTokens:
    """Return one turn; only the assistant's words and end of turn are learned, never its role token."""
    words = [*tokenizer.encode(message.content), tokenizer.special[END_OF_TURN]]
    says = message.role == "assistant"
    return ChatTokens([tokenizer.special[ROLE_TOKENS[message.role]], *words], [False] + [says] * len(words))


def encode_dialogue(messages: Sequence[Message], tokenizer: Tokenizer, limit: int) -> ChatTokens | None:
    """Return the first turns that fit into `limit` tokens, or None where no whole answer does."""
    ids: list[int] = []
    learned: list[bool] = []
    for turn in (encode_turn(message, tokenizer) for message in messages):
        if len(ids) + len(turn.ids) > limit:
            break
        ids += turn.ids
        learned += turn.learned
    answered = len(learned) - learned[::-1].index(True) if any(learned) else 0  # a cut ends with an answer
    return ChatTokens(ids[:answered], learned[:answered]) if answered else None


def encode_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Return the ids that ask the assistant to answer `messages`."""
    ids = [id for message in messages for id in encode_turn(message, tokenizer).ids]
    return [*ids, tokenizer.special[ASSISTANT]]


def decode_turns(ids: Sequence[int], tokenizer: Tokenizer) -> list[Message]:
    """Return the turns that `ids` spell, an unfinished one included; what stands before the first is left out."""
    roles = {tokenizer.special[token]: role for role, token in ROLE_TOKENS.items()}
    starts = [at for at, id in enumerate(ids) if id in roles]
    ends = [*starts[1:], len(ids)]
    return [
        Message(roles[ids[start]], tokenizer.decode(ids[start + 1 : end]))
        for start, end in zip(starts, ends, strict=False)
    ]
