"""Batches for pretraining: every token is a target."""

from niels_gpt.data.batches import TokenStream
from niels_gpt.tokenizer import Tokenizer
from train.config.schema import RunCfg
from train.run.data import PhaseData, open_data


def open_documents(cfg: RunCfg, tokenizer: Tokenizer) -> PhaseData:
    """Return the documents as sequences of T tokens.

    DataError if there is too little text, or a file cannot be used.
    """
    return open_data(cfg, tokenizer, TokenStream)
