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

    The rows of a tree follow one another. A tree without an answer is left out.
    """
    for tree, group in groupby(rows, key=_get_tree):
        if not tree:  # bad rows
            yield from group
            continue
        messages = list(islice(group, MAX_MESSAGES))
        replies: dict[str, list[Mapping[str, Any]]] = {}
        for _, row in messages:
            replies.setdefault(str(row.get("parent_id") or ""), []).append(row)
        thread: list[dict[str, Any]] = []
        at = ""
        while found := replies.pop(at, None):  # popped, so that a circle of messages ends
            best = min(found, key=_get_rank)
            at = str(best.get("message_id"))
            role = best.get("role")
            thread.append({"role": "user" if role == "prompter" else role, "content": best.get("text")})
        while thread and thread[-1]["role"] != "assistant":
            thread.pop()
        if thread:
            yield messages[0][0], {"messages": thread}


def _get_tree(placed: Placed) -> str:
    return str(placed[1].get("message_tree_id") or "") if isinstance(placed[1], dict) else ""


def _get_rank(row: Mapping[str, Any]) -> float:
    """Return a rank, of which 0 is the best; messages without one come last."""
    try:
        return float(row["rank"])
    except (KeyError, TypeError, ValueError):
        return inf
