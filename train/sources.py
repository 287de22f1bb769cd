"""Opens what a phase reads: its tokenizer, and the token files of its mixture as one run of sequences."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from niels_gpt.config import SourceCfg
from niels_gpt.data.batches import Mixture, Source
from niels_gpt.data.cache import TokenFiles, token_files, token_meta, tokenizer_for
from niels_gpt.data.sources import Want, having
from niels_gpt.errors import CheckpointError, DataError
from niels_gpt.tokenizer import Tokenizer, load_tokenizer
from niels_gpt.weights import phase_folder
from niels_gpt.writing import write_text
from train.schema import PhaseName, RunCfg

WANTS: dict[PhaseName, Want] = {"pretrain": "documents", "sft": "dialogues"}
Stream = Callable[[TokenFiles, int, int | None], Source]


def mixture(cfg: RunCfg, split: str, want: Want, stream: Stream) -> Source:
    """Return the sequences of a split, shuffled by the seed to train on, always the same to validate on."""
    tokenizer = load_tokenizer(cfg.tokenizer_path)
    seed = cfg.train.seed if split == "train" else None
    T, sources = cfg.model.T, chosen(cfg, split)
    files = [token_files(source, want, split, tokenizer, cfg.data, T + 1) for source in sources]
    streams: list[Source] = []
    for source, file in zip(sources, files, strict=True):
        with _told_of(source, split):
            streams.append(stream(file, T, seed))
    return streams[0] if len(streams) == 1 else Mixture(streams, [source.weight for source in sources], seed)


@contextmanager
def _told_of(source: SourceCfg, split: str) -> Iterator[None]:
    """Say of what gives too little which source it is, and which of its splits."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{source.called}, {split} split: {error}", error.hint) from None


def chosen(cfg: RunCfg, split: str) -> list[SourceCfg]:
    """Return the sources of a split: those that have what the phase reads, for `val` perhaps one of them."""
    sources = having(cfg.data.mixture(), WANTS[cfg.phase])
    if split == "val" and cfg.data.val_source:
        sources = [source for source in sources if source.called == cfg.data.val_source]
    return sources


def content_hash(cfg: RunCfg, tokenizer: Tokenizer) -> str:
    """Return a hash of the text that the phase reads and of how it is split: a resumed run needs the same."""
    sources = chosen(cfg, "train")
    metas = [token_meta(s, WANTS[cfg.phase], tokenizer, cfg.data, cfg.model.T + 1) for s in sources]
    facts = [(meta.content_sha256, source.weight) for meta, source in zip(metas, sources, strict=True)]
    return hashlib.sha256(repr((facts, cfg.data.val_source, cfg.data.val_fraction)).encode()).hexdigest()[:16]


def run_tokenizer(cfg: RunCfg, init_from: Path | None) -> Tokenizer:
    """Return the run's tokenizer: that of its checkpoints, of the weights it starts from, or a new one.

    Raises:
        DataError: the text does not give model.V entries, or the tokenizer is of another size.
        CheckpointError: the weights to start from have no tokenizer beside them.
    """
    begun = any(Path(cfg.dir).glob("*/*.pt"))
    theirs = init_from if cfg.resume in ("auto", "never") else checkpoint_path(cfg.resume)
    if not begun and theirs:
        adopt_tokenizer(theirs, cfg.tokenizer_path)
    elif not begun or not cfg.tokenizer_path.exists():
        tokenizer_for(cfg.data, WANTS[cfg.phase], cfg.model.V).save(cfg.tokenizer_path)
    tokenizer = load_tokenizer(cfg.tokenizer_path)
    if tokenizer.V != cfg.model.V:
        kind = CheckpointError if begun or theirs else DataError
        raise kind(
            f"model.V={cfg.model.V} was asked for, but {cfg.tokenizer_path} has {tokenizer.V} entries",
            f"use model.V={tokenizer.V}, or another name=...",
        )
    return tokenizer


def adopt_tokenizer(checkpoint: Path, target: Path) -> None:
    """Copy the tokenizer of the run whose weights are taken over."""
    theirs = phase_folder(checkpoint).parent / target.name
    if not theirs.exists():
        raise CheckpointError(
            f"{checkpoint} was asked for, but its tokenizer is not at {theirs}",
            "give a checkpoint that lies in its run folder, as runs/<name>/<phase>/best.pt",
        )
    if theirs.resolve() != target.resolve():
        write_text(target, theirs.read_text(encoding="utf-8"))


def checkpoint_path(asked: str) -> Path:
    """Return the checkpoint that a setting names; a phase's folder stands for the best one in it.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(asked)
    path = path / "best.pt" if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint", "give a path as runs/<name>/<phase>/best.pt")
    return path
