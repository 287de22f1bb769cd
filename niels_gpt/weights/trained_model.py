"""Open a trained model with its tokenizer."""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from niels_gpt.adopted_tokenizer import CONFIG, TEMPLATE, adopt_tokenizer
from niels_gpt.data.chat_template import JINJA
from niels_gpt.errors import CheckpointError
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import END_OF_TURN, Tokenizer, load_tokenizer
from niels_gpt.untrusted import read_json, read_text
from niels_gpt.weights.average import read_weights
from niels_gpt.weights.checkpoint import get_phase_folder, make_model
from niels_gpt.weights.llama import read_llama
from niels_gpt.weights.paths import TOKENIZER, WEIGHTS, is_hugging_face

RESTORE = "restore the run's own tokenizer.json"


class TrainedModel(NamedTuple):
    """A model, on the CPU and in evaluation mode, with its tokenizer; after SFT it `chats`.

    `weights` says which of the weights in a run these are, as in "sft/best.pt, step 200"; `path` is their file.
    """

    model: GPT
    tokenizer: Tokenizer
    chats: bool
    path: Path
    weights: str


def open_model(
    path: Path, *, step: int | None = None, average: int | None = None, ema: bool = False
) -> TrainedModel:
    """Return the model of the weights that `read_weights` chooses, with the tokenizer of their run.

    `path` may also be a Hugging Face folder, which has one choice of weights. Its model chats if its chat template
    is ours, and its end of a text is that of a turn.

    CheckpointError if there are none, or they were trained with another tokenizer. DataError if the tokenizer
    cannot be used.
    """
    if is_hugging_face(path):
        if step is not None or average is not None or ema:
            reason = f"{path} has one set of weights, so --step, --average and --ema do not apply"
            raise CheckpointError(reason, "name the run that it was exported from")
        model, tokenizer = make_model(read_llama(path)), adopt_tokenizer(path / TOKENIZER).tokenizer
        return TrainedModel(model, tokenizer, _chats(path), path / WEIGHTS, WEIGHTS)
    checkpoint, saved, weights = read_weights(path, step=step, average=average, ema=ema)
    phase = get_phase_folder(checkpoint)
    tokenizer = load_tokenizer(phase.parent / TOKENIZER, RESTORE)
    model = make_model(saved)
    if saved["train_cfg"].get("tokenizer", tokenizer.hash()) != tokenizer.hash() or model.cfg.V != tokenizer.V:
        raise CheckpointError(
            f"{checkpoint} was trained with a different tokenizer than {phase.parent / TOKENIZER}",
            RESTORE,
        )
    return TrainedModel(model, tokenizer, phase.name == "sft", checkpoint, weights)


def _chats(folder: Path) -> bool:
    """Return whether `export_llama` wrote a folder for a model that chats."""
    with suppress(ValueError, LookupError, TypeError):  # a file is missing, or another's
        ends_turns = read_json(folder / CONFIG)["eos_token"] == END_OF_TURN
        return ends_turns and read_text(folder / TEMPLATE, len(JINJA)) == JINJA
    return False
