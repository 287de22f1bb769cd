"""Where SFT batches come from: only the assistant's words are targets."""

from niels_gpt.data.batches import ChatStream, Source
from train.schema import RunCfg
from train.sources import mixture


def source(cfg: RunCfg, split: str) -> Source:
    """Return the dialogues of a split, `train` or `val`, packed whole into sequences of T tokens.

    Raises:
        DataError: there are no dialogues, or a file cannot be used.
    """
    return mixture(cfg, split, "dialogues", ChatStream)
