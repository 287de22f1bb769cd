"""Opens what a phase reads: the token files of its mixture, as one numbered run of sequences."""

from collections.abc import Callable

from niels_gpt.config import SourceCfg
from niels_gpt.data.batches import Mixture, Source
from niels_gpt.data.cache import TokenFiles, token_files, tokenizer_for
from niels_gpt.data.sources import Want
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import Tokenizer, load_tokenizer
from train.config import PhaseName, RunCfg

WANTS: dict[PhaseName, Want] = {"pretrain": "documents", "sft": "dialogues"}
Stream = Callable[[TokenFiles, int, int | None], Source]


def mixture(cfg: RunCfg, split: str, want: Want, stream: Stream) -> Source:
    """Return the sequences of a split, shuffled by the seed to train on, always the same to validate on."""
    tokenizer = run_tokenizer(cfg)
    seed = cfg.train.seed if split == "train" else None
    T, sources = cfg.model.T, chosen(cfg, split)
    files = [token_files(source, want, split, tokenizer, cfg.data, T + 1) for source in sources]
    streams = [stream(file, T, seed) for file in files]
    return streams[0] if len(streams) == 1 else Mixture(streams, [source.weight for source in sources], seed)


def chosen(cfg: RunCfg, split: str) -> list[SourceCfg]:
    """Return the sources of a split: those that have what the phase reads, for `val` perhaps one of them."""
    sources = [source for source in cfg.data.mixture() if cfg.phase == "pretrain" or source.kind != "text"]
    if split == "val" and cfg.data.val_source:
        sources = [source for source in sources if source.called == cfg.data.val_source]
    return sources


def run_tokenizer(cfg: RunCfg) -> Tokenizer:
    """Return the run's tokenizer, which the first phase makes from its training split and later ones share.

    Raises:
        DataError: the text does not give model.V entries, or the run's tokenizer is another size.
    """
    if not cfg.tokenizer_path.exists():
        tokenizer = tokenizer_for(cfg.data, WANTS[cfg.phase], cfg.model.V)
        tokenizer.save(cfg.tokenizer_path)
    tokenizer = load_tokenizer(cfg.tokenizer_path)
    if tokenizer.V != cfg.model.V:
        raise DataError(
            f"model.V={cfg.model.V} was asked for, but {cfg.tokenizer_path} has {tokenizer.V} entries",
            f"use model.V={tokenizer.V}, or another name=...",
        )
    return tokenizer
