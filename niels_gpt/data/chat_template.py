"""The chat template: encode a dialogue as token ids, and mark the targets.

<|system|>text<|end_of_turn|> <|user|>text<|end_of_turn|> <|assistant|>text<|end_of_turn|> (without the spaces)
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from niels_gpt.data.readers.records import Message, Role
from niels_gpt.tokenizer import ASSISTANT, END_OF_TURN, SYSTEM, USER, Tokenizer

ROWS_VERSION = 2  # of how dialogues become rows, here and in batches.py: an SFT run resumes only with its own
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


def encode_turn(message: Message, tokenizer: Tokenizer, learn: Learn = "assistant") -> ChatTokens:
    """Return one turn; its words and end of turn are targets if its role is learned, its role token never."""
    words = [*tokenizer.encode(message.content), tokenizer.special[END_OF_TURN]]
    is_target = message.learn and message.role in LEARNED[learn]
    return ChatTokens([tokenizer.special[ROLE_TOKENS[message.role]], *words], [False] + [is_target] * len(words))


def encode_dialogue(
    messages: Sequence[Message], tokenizer: Tokenizer, limit: int, learn: Learn = "assistant"
) -> list[ChatTokens]:
    """Return the rows of a dialogue, of `limit` tokens at most, up to the last target; none without an answer.

    Every word to learn is a target once. A message that does not fit goes on in further rows, which begin with the
    system message and, before an answer, the last question; these are no targets there. Beside a message of more
    than half a row, they take the other half: the question is cut to its end, as a prompt is in generation, and
    only if this leaves less than an eighth of a row for it, the system message too.
    """
    turns = [encode_turn(message, tokenizer, learn) for message in messages]
    last = max((n for n, turn in enumerate(turns) if any(turn.target_mask)), default=-1)
    if all(message.role != "assistant" for message in messages[: last + 1]):
        return []
    first = int(messages[0].role == "system")
    system = turns[0].ids if first else []
    rows = [ChatTokens([*system], [False] * len(system))]
    context: list[int] = []  # since the last target
    question: list[int] = []
    for message, turn in zip(messages[first:], turns[first:], strict=True):
        role, *words = turn.ids
        ids, target_mask, _ = rows[-1]
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
            for at in range(0, len(words), limit - len(begin)):
                part = words[at : at + limit - len(begin)]
                rows.append(ChatTokens(begin + part, [False] * len(begin) + [True] * len(part), cut))
            context = []
        if message.role == "user":
            question = turn.ids
    return [row for row in rows if any(row.target_mask)]


def _shorten(system: list[int], question: list[int], room: int) -> list[int]:
    """Return both turns, or their role tokens and last words, in `room` tokens."""
    short: list[int] = []
    for turn, left in (system, room - min(len(question), max(3, room // 4))), (question, room):
        left -= len(short)
        if len(turn) <= left:
            short += turn
        elif left > 2:  # the role, a word and the end of turn
            short += [turn[0], *turn[1 - left :]]
    return short


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
