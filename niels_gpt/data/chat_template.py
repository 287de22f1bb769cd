"""The chat template: encode a dialogue as token ids, and mark the targets.

<|system|>text<|end_of_turn|> <|user|>text<|end_of_turn|> <|assistant|>text<|end_of_turn|> (without the spaces)
"""

from collections.abc import Sequence
from itertools import chain
from typing import Literal, NamedTuple

from niels_gpt.data.readers.records import Message, Role
from niels_gpt.tokenizer import ASSISTANT, END_OF_TURN, SYSTEM, USER, Tokenizer

DIALOGUES_VERSION = 2  # of the rules here and of packing in batches.py: an SFT run resumes only with its own
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
    """Token ids, and a mask of the targets: words to learn and their end of turn.

    If `cut`, words that come before the targets in the dialogue found no room.
    """

    ids: list[int]
    target_mask: list[bool]
    cut: bool = False


def make_turn(
    message: Message, words: Sequence[int], tokenizer: Tokenizer, learn: Learn = "assistant"
) -> ChatTokens:
    """Return the turn of these ids of a message; they and the end of turn are targets if its role is learned."""
    is_target = message.learn and message.role in LEARNED[learn]
    ids = [tokenizer.special[ROLE_TOKENS[message.role]], *words, tokenizer.special[END_OF_TURN]]
    return ChatTokens(ids, [False] + [is_target] * (len(words) + 1))


def encode_dialogue(
    messages: Sequence[Message],
    words: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    limit: int,
    learn: Learn = "assistant",
) -> list[ChatTokens]:
    """Return the items of a dialogue, of `limit` tokens at most, up to the last target; none without an answer.

    `words` has the ids of each message. Each id to learn is a target once. A message that does not fit goes on in
    further items, which begin with the system message and, before an answer, the last question, not as targets.
    Beside a message of more than half of `limit`, they take the other half: the question is cut to its end, as a
    prompt is in generation, and only if this leaves it less than an eighth, the system message to its beginning.
    """
    turns = [make_turn(*spoken, tokenizer, learn) for spoken in zip(messages, words, strict=True)]
    last = max((n for n, turn in enumerate(turns) if any(turn.target_mask)), default=-1)
    if all(message.role != "assistant" for message in messages[: last + 1]):
        return []
    system = turns[0].ids if messages[0].role == "system" else []
    items = [ChatTokens([*system], [False] * len(system))]
    context: list[int] = []  # since the last target
    question: list[int] = []
    for message, turn in list(zip(messages, turns, strict=True))[bool(system) :]:
        role, *rest = turn.ids
        ids, target_mask, _ = items[-1]
        if not any(turn.target_mask):
            context += turn.ids
        elif len(ids) + len(context) + len(turn.ids) <= limit:
            ids += context + turn.ids
            target_mask += [False] * len(context) + turn.target_mask
            context = []
        else:
            asked = question if message.role == "assistant" else []
            room = max((limit - 1) // 2, limit - len(turn.ids))
            begin = [*_shorten(system, asked, room), role]
            cut = begin != [*system, *(context or asked), role]
            for at in range(0, len(rest), limit - len(begin)):
                part = rest[at : at + limit - len(begin)]
                items.append(ChatTokens(begin + part, [False] * len(begin) + [True] * len(part), cut))
            context = []
        if message.role == "user":
            question = turn.ids
    return [item for item in items if any(item.target_mask)]


def _shorten(system: list[int], question: list[int], room: int) -> list[int]:
    """Return both turns in `room` tokens, the first words of the one and the last of the other if need be."""
    short: list[int] = []
    for turn, left in (system, room - min(len(question), max(3, room // 4))), (question, room):
        left -= len(short)
        if len(turn) <= left:
            short += turn
        elif left > 2:  # the role, a word and the end of turn
            short += [*turn[: left - 1], turn[-1]] if turn is system else [turn[0], *turn[1 - left :]]
    return short


def encode_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Return the ids of `messages` and of the role token that starts the answer."""
    turns = (make_turn(message, tokenizer.encode(message.content), tokenizer).ids for message in messages)
    return [*chain.from_iterable(turns), tokenizer.special[ASSISTANT]]


def decode_turns(ids: Sequence[int], tokenizer: Tokenizer) -> list[Message]:
    """Return the turns in `ids`, an unfinished one included; ids before the first turn are left out."""
    roles = {tokenizer.special[token]: role for role, token in ROLE_TOKENS.items()}
    begins = [at for at, id in enumerate(ids) if id in roles]
    ends = [*begins[1:], len(ids)]
    return [
        Message(roles[ids[begin]], tokenizer.decode(ids[begin + 1 : end]))
        for begin, end in zip(begins, ends, strict=False)
    ]
