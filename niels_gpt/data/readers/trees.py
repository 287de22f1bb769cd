"""Turn trees of messages, such as OpenAssistant's, into dialogues."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from math import inf
from typing import Any

from niels_gpt.data.readers.tables import Placed

KEYS = {"message_id", "parent_id", "message_tree_id", "role", "text"}
MAX_MESSAGES = 10_000  # of a tree


def join_trees(rows: Iterable[Placed]) -> Iterator[Placed]:
    """Yield one row of messages for each tree: from its root, the best reply to each message, up to an answer.

    The rows of a tree follow one another. A tree without an answer is left out, other rows stay as they are.
    """
    for tree, group in groupby(rows, lambda placed: _is_message(placed[1]) and placed[1]["message_tree_id"]):
        if not tree:
            yield from group
            continue
        (place, root), *others = islice(group, MAX_MESSAGES)
        best: dict[str, Mapping[str, Any]] = {}  # reply to each message
        for row in sorted((root, *(row for _, row in others)), key=_get_rank):
            best.setdefault(str(row["parent_id"] or ""), row)
        thread: list[dict[str, Any]] = []
        at = ""
        while row := best.pop(at, None):  # popped, so that a circle of messages ends
            at = str(row["message_id"])
            thread.append({"role": "user" if row["role"] == "prompter" else row["role"], "content": row["text"]})
        while thread and thread[-1]["role"] != "assistant":
            thread.pop()
        if thread:
            yield place, {"messages": thread}


def _is_message(row: object) -> bool:
    return isinstance(row, dict) and row.keys() >= KEYS


def _get_rank(row: Mapping[str, Any]) -> float:
    """Return a rank, of which 0 is the best; messages without one come last."""
    try:
        return float(row["rank"])
    except (KeyError, TypeError, ValueError):
        return inf
