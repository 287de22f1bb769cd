"""Load a trained model with its tokenizer, to complete a text or chat with it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from niels_gpt.data.chat_template import encode_prompt
from niels_gpt.data.readers.records import Message
from niels_gpt.errors import CheckpointError
from niels_gpt.generation.generate import generate
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import END_OF_TEXT, END_OF_TURN, Tokenizer, load_tokenizer
from niels_gpt.weights.checkpoint import load_model, phase_folder


class Speaker:
    """`chats` says whether the weights come from SFT. A conversation is remembered, as far as T tokens reach."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, chats: bool) -> None:
        self.model, self.tokenizer, self.chats = model, tokenizer, chats
        self.conversation: list[Message] = []

    def go_on(self, text: str, **sampling: Any) -> Iterator[str]:
        """Yield, piece by piece, how the model goes on from `text`; `sampling` is as in `generate`."""
        end = self.tokenizer.special[END_OF_TEXT]
        yield from self._pieces([end, *self.tokenizer.encode(text)], [end], sampling)

    def reply(self, question: str, **sampling: Any) -> Iterator[str]:
        """Yield, piece by piece, the assistant's answer; `sampling` is as in `generate`.

        The conversation has the question with as much of the answer as was yielded, and neither before that.
        """
        asked, start, said = Message("user", question), len(self.conversation), ""
        prompt = encode_prompt([*self.conversation, asked], self.tokenizer)
        for piece in self._pieces(prompt, [self.tokenizer.special[END_OF_TURN]], sampling):
            said += piece
            self.conversation[start:] = asked, Message("assistant", said)
            yield piece

    def _pieces(self, prompt: Sequence[int], stop: Sequence[int], sampling: dict[str, Any]) -> Iterator[str]:
        """Decode as tokens come; a character that is not whole yet is held back."""
        ids: list[int] = []
        shown = ""
        for id in generate(self.model, prompt, stop=stop, **sampling):
            ids.append(id)
            text = self.tokenizer.decode(ids)
            if text != shown and not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        yield self.tokenizer.decode(ids)[len(shown) :]


def load_speaker(path: Path) -> Speaker:
    """Return the best weights of a run folder's last phase, or those of a checkpoint in one.

    Raises:
        CheckpointError: there is nothing to load, or it was trained with another tokenizer than stands beside it.
        DataError: its tokenizer cannot be used.
    """
    checkpoint = path if path.suffix == ".pt" and not path.is_dir() else _best(path)
    phase = phase_folder(checkpoint)
    tokenizer = load_tokenizer(phase.parent / "tokenizer.json")
    model, train_cfg = load_model(checkpoint)
    if train_cfg.get("tokenizer", tokenizer.hash()) != tokenizer.hash() or model.cfg.V != tokenizer.V:
        raise CheckpointError(
            f"{checkpoint} was trained with another tokenizer than {phase.parent / 'tokenizer.json'}",
            "put the run's own tokenizer.json back",
        )
    return Speaker(model, tokenizer, chats=phase.name == "sft")


def _best(run: Path) -> Path:
    for phase in ("sft", "pretrain"):
        if (run / phase / "best.pt").exists():
            return run / phase / "best.pt"
    raise CheckpointError(
        f"{run} has no sft/best.pt or pretrain/best.pt",
        "name a run folder, as runs/default, that has been trained",
    )
