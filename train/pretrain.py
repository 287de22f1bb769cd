"""Where pretraining batches come from: every token is a target."""

from niels_gpt.data.batches import Source, TokenStream
from train.schema import RunCfg
from train.sources import mixture


def source(cfg: RunCfg, split: str) -> Source:
    """Return the documents of a split, `train` or `val`, as sequences of T tokens.

    Raises:
        DataError: there is too little text, or a file cannot be used.
    """
    return mixture(cfg, split, "documents", TokenStream)
