"""Opens what a phase reads: its tokenizer, and the token files of its mixture as one run of sequences."""

import shutil
from collections.abc import Callable
from pathlib import Path

from niels_gpt.config import SourceCfg
from niels_gpt.data.batches import Mixture, Source
from niels_gpt.data.cache import TokenFiles, token_files, tokenizer_for
from niels_gpt.data.sources import Want
from niels_gpt.errors import CheckpointError, DataError
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


def adopt_tokenizer(cfg: RunCfg, init_from: Path | None) -> None:
    """Copy the tokenizer of the run whose weights are taken over."""
    checkpoint = Path(cfg.resume) if cfg.resume not in ("auto", "never") else init_from
    if checkpoint is None or cfg.tokenizer_path.exists():
        return
    theirs = checkpoint.parent.parent / cfg.tokenizer_path.name
    if not theirs.exists():
        raise CheckpointError(
            f"{checkpoint} was asked for, but its tokenizer is not at {theirs}",
            "give a checkpoint that lies in its run folder, as runs/<name>/<phase>/best.pt",
        )
    shutil.copyfile(theirs, cfg.tokenizer_path)
