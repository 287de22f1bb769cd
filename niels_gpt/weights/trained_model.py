"""Open a trained model with its tokenizer."""

from pathlib import Path
from typing import NamedTuple

from niels_gpt.errors import CheckpointError
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import Tokenizer, load_tokenizer
from niels_gpt.weights.average import read_weights
from niels_gpt.weights.checkpoint import get_phase_folder, make_model


class TrainedModel(NamedTuple):
    """A model, on the CPU and in evaluation mode, with its tokenizer; after SFT it `chats`."""

    model: GPT
    tokenizer: Tokenizer
    chats: bool


def open_model(
    path: Path, *, step: int | None = None, average: int | None = None, ema: bool = False
) -> TrainedModel:
    """Return the model of the weights that `read_weights` chooses, with the tokenizer of their run.

    CheckpointError if there are none, or they were trained with another tokenizer. DataError if the tokenizer
    cannot be used.
    """
    checkpoint, saved = read_weights(path, step=step, average=average, ema=ema)
    phase = get_phase_folder(checkpoint)
    tokenizer = load_tokenizer(phase.parent / "tokenizer.json")
    model = make_model(saved)
    if saved["train_cfg"].get("tokenizer", tokenizer.hash()) != tokenizer.hash() or model.cfg.V != tokenizer.V:
        raise CheckpointError(
            f"{checkpoint} was trained with a different tokenizer than {phase.parent / 'tokenizer.json'}",
            "restore the run's own tokenizer.json",
        )
    return TrainedModel(model, tokenizer, phase.name == "sft")
