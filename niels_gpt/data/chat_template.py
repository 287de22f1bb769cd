"""The chat template: encode a dialogue as token ids, and mark the targets.

<|system|>text<|end_of_turn|> <|user|>text<|end_of_turn|> <|assistant|>text<|end_of_turn|> (without the spaces)
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from niels_gpt.data.readers.records import Message, Role
from niels_gpt.tokenizer import ASSISTANT, END_OF_TURN, SYSTEM, USER, Tokenizer

Learn = Literal["assistant", "all"]
LEARNED: dict[Learn, tuple[Role, ...]] = {"assistant": ("assistant",), "all": ("user", "assistant")}
ROLE_TOKENS: dict[Role, str] = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
# The same in Jinja, for other programs; generation marks the targets of learn="assistant".
JINJA = """\
{%- for message in messages %}
  {%- if message['role'] not in ['system', 'user', 'assistant'] %}
    {{- raise_exception('this model knows the roles system, user and assistant') }}
  {%- endif %}
  {{- '<|' + message['role'] + '|>' }}
  {%- if message['role'] == 'assistant' %}
    {%- generation %}{{- message['content'] + '<|end_of_turn|>' }}{%- endgeneration %}
  {%- else %}
    {{- message['content'] + '<|end_of_turn|>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}
"""


class ChatTokens(NamedTuple):
    """Token ids, and a mask of the targets: words to learn and their end of turn."""

    ids: list[int]
    target_mask: list[bool]


def encode_turn(message: Message, tokenizer: Tokenizer, learn: Learn = "assistant") -> ChatTokens:
    """Return one turn; its words and end of turn are targets if its role is learned, its role token never."""
    words = [*tokenizer.encode(message.content), tokenizer.special[END_OF_TURN]]
    is_target = message.learn and message.role in LEARNED[learn]
    return ChatTokens([tokenizer.special[ROLE_TOKENS[message.role]], *words], [False] + [is_target] * len(words))


def encode_dialogue(
    messages: Sequence[Message], tokenizer: Tokenizer, limit: int, learn: Learn = "assistant"
) -> ChatTokens | None:
    """Return the turns that fit into `limit` tokens, up to the last target, or None if that leaves no answer."""
    ids: list[int] = []
    mask: list[bool] = []
    for turn in (encode_turn(message, tokenizer, learn) for message in messages):
        if len(ids) + len(turn.ids) > limit:
            break
        ids += turn.ids
        mask += turn.target_mask
    answered = len(mask) - mask[::-1].index(True) if any(mask) else 0
    has_answer = tokenizer.special[ASSISTANT] in ids[:answered]
    return ChatTokens(ids[:answered], mask[:answered]) if has_answer else None


def encode_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Return the ids of `messages` and of the role token that starts the answer."""
    ids = [id for message in messages for id in encode_turn(message, tokenizer).ids]
    return [*ids, tokenizer.special[ASSISTANT]]


def decode_turns(ids: Sequence[int], tokenizer: Tokenizer) -> list[Message]:
    """Return the turns in `ids`, an unfinished one included; ids before the first turn are left out."""
    roles = {tokenizer.special[token]: role for role, token in ROLE_TOKENS.items()}
    begins = [at for at, id in enumerate(ids) if id in roles]
    ends = [*begins[1:], len(ids)]
    return [
        Message(roles[ids[begin]], tokenizer.decode(ids[begin + 1 : end]))
        for begin, end in zip(begins, ends, strict=False)
    ]
