"""Complete text or chat with a trained model."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from niels_gpt.data.chat_template import encode_prompt
from niels_gpt.data.readers.records import Message
from niels_gpt.errors import CheckpointError
from niels_gpt.generation.generate import generate
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import END_OF_TEXT, END_OF_TURN, Tokenizer, load_tokenizer
from niels_gpt.weights.checkpoint import get_phase_folder, load_model

NAME_A_RUN = "name the folder of a trained run, such as runs/default, or a checkpoint in it"


class ChatSession:
    """A model with its tokenizer and conversation, of which it sees the last T tokens. `chats` after SFT."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, chats: bool) -> None:
        self.model, self.tokenizer, self.chats = model, tokenizer, chats
        self.conversation: list[Message] = []

    def complete(self, text: str, **sampling: Any) -> Iterator[str]:
        """Yield the continuation of `text` piece by piece; `sampling` as in `generate`."""
        end = self.tokenizer.special[END_OF_TEXT]
        yield from self._stream_text([end, *self.tokenizer.encode(text)], [end], sampling)

    def reply(self, question: str, **sampling: Any) -> Iterator[str]:
        """Yield the assistant's answer piece by piece; `sampling` as in `generate`.

        The question and the yielded part of the answer join the conversation with the first piece.
        """
        message, start, answer = Message("user", question), len(self.conversation), ""
        prompt = encode_prompt([*self.conversation, message], self.tokenizer)
        for piece in self._stream_text(prompt, [self.tokenizer.special[END_OF_TURN]], sampling):
            answer += piece
            self.conversation[start:] = message, Message("assistant", answer)
            yield piece

    def _stream_text(self, prompt: Sequence[int], stop: Sequence[int], sampling: dict[str, Any]) -> Iterator[str]:
        """Decode tokens as they come; hold back an incomplete character."""
        ids: list[int] = []
        shown = ""
        for id in generate(self.model, prompt, stop=stop, **sampling):
            ids.append(id)
            text = self.tokenizer.decode(ids)
            if text != shown and not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        yield self.tokenizer.decode(ids)[len(shown) :]


def find_checkpoint(path: Path) -> Path:
    """Return a checkpoint, or the best one of a phase or of a run's last phase. CheckpointError without any."""
    if not os.path.exists(path):
        raise CheckpointError(f"{path} does not exist", NAME_A_RUN)
    return path if path.suffix == ".pt" and not path.is_dir() else _find_best(path)


def load_session(path: Path) -> ChatSession:
    """Load a checkpoint, found as above, with the run's tokenizer.

    CheckpointError if there is none, or it was trained with another tokenizer. DataError if the tokenizer cannot
    be used.
    """
    checkpoint = find_checkpoint(path)
    phase = get_phase_folder(checkpoint)
    tokenizer = load_tokenizer(phase.parent / "tokenizer.json")
    model, train_cfg = load_model(checkpoint)
    if train_cfg.get("tokenizer", tokenizer.hash()) != tokenizer.hash() or model.cfg.V != tokenizer.V:
        raise CheckpointError(
            f"{checkpoint} was trained with a different tokenizer than {phase.parent / 'tokenizer.json'}",
            "restore the run's own tokenizer.json",
        )
    return ChatSession(model, tokenizer, chats=phase.name == "sft")


def _find_best(run: Path) -> Path:
    for phase in ("sft", "pretrain", "."):
        if (run / phase / "best.pt").exists():
            return run / phase / "best.pt"
    raise CheckpointError(f"{run} has no sft/best.pt or pretrain/best.pt", NAME_A_RUN)
