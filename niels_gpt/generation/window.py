"""The part of a text that a model sees: at most T tokens."""

from collections.abc import Iterable, Mapping

from niels_gpt.tokenizer import ASSISTANT, SYSTEM, USER


class Window:
    """The end of a text, in `ids`. When it is full, the oldest half is dropped; a dialogue is cut at a question.

    A system message stays, or its beginning if it is longer than T/2. An exchange that is longer than the room
    loses its beginning. As this depends on the tokens before alone, a longer prompt has the same cuts.
    """

    def __init__(self, T: int, special: Mapping[str, int] = {}) -> None:
        """`special` has the ids of the tokens that begin the turns of a dialogue."""
        self.T, self.ids, self.dropped = T, list[int](), 0
        self._system, self._user, self._assistant = (special.get(role) for role in (SYSTEM, USER, ASSISTANT))

    def extend(self, ids: Iterable[int]) -> None:
        """Append ids one by one; `dropped` counts those that were dropped."""
        for id in ids:
            if len(self.ids) == self.T:
                self._drop_half()
                self.dropped += self.T - len(self.ids)
            self.ids.append(id)

    def _drop_half(self) -> None:
        begins = [n for n, id in enumerate(self.ids) if id in (self._user, self._assistant)]
        fixed = 0
        if self.ids[0] == self._system:
            fixed = min([*begins, self.T // 2])
        room = self.T - fixed
        half = fixed + (room + 1) // 2
        questions = [n for n in begins if self.ids[n] == self._user and n >= fixed + (room + 7) // 8]
        if questions:  # the first in the newer half, or the last
            rest = self.ids[next((n for n in questions if n >= half), questions[-1]) :]
        else:
            role = [self.ids[n] for n in begins if fixed <= n <= half][-1:]
            rest = self.ids[half:]
            rest[:1] = role[: len(rest)] or rest[:1]
        self.ids = self.ids[:fixed] + rest
