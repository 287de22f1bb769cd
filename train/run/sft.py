"""Batches for SFT: only the assistant's words are targets."""

from niels_gpt.data.batches import ChatStream
from niels_gpt.tokenizer import Tokenizer
from train.config.schema import RunCfg
from train.run.data import PhaseData, open_data


def open_dialogues(cfg: RunCfg, tokenizer: Tokenizer) -> PhaseData:
    """Return the dialogues, packed whole into sequences of T tokens.

    DataError if there are no dialogues, or a file cannot be used.
    """
    return open_data(cfg, tokenizer, ChatStream)
