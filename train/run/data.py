"""Open the token files of a phase as one source of batches."""

import logging
from typing import Any, NamedTuple

from niels_gpt.config import SourceCfg
from niels_gpt.data.batches import ChatStream, Mixture, Source, TokenStream
from niels_gpt.data.cache.token_cache import hash_parts, open_cache
from niels_gpt.data.cache.token_files import TokenCache
from niels_gpt.data.sources import Want, describe, select_sources
from niels_gpt.errors import DataError
from niels_gpt.tokenizer import Tokenizer
from train.config.schema import PhaseName, RunCfg
from train.loop.evaluate import ValSource, allocate_sequences

WANTS: dict[PhaseName, Want] = {"pretrain": "documents", "sft": "dialogues"}
VAL_SEED = 0  # for the order of validation sequences, the same in all runs so that their losses compare
STREAMS: dict[Want, type[TokenStream | ChatStream]] = {"documents": TokenStream, "dialogues": ChatStream}
log = logging.getLogger("niels_gpt")


class PhaseData(NamedTuple):
    """The training sequences of a phase, and its validation sequences by source.

    A resumed run needs the same `content_hash`; `sources` says in words what went into it. Validation losses
    compare while `val_hash` stays the same. `caches` has the token files of each source.
    """

    train: Source
    val: list[ValSource]
    content_hash: str
    val_hash: str
    sources: dict[str, dict[str, Any]]
    caches: list[tuple[SourceCfg, TokenCache]]

    def count_epochs(self, sequences: int) -> list[tuple[str, float]]:
        """Return how often so many training sequences go through each source, with its label."""
        streams = self.train.sources if isinstance(self.train, Mixture) else [self.train]
        share = sequences / sum(source.weight for source, _ in self.caches)
        pairs = zip(self.caches, streams, strict=True)
        return [(source.label, share * source.weight / len(stream)) for (source, _), stream in pairs]


def open_data(cfg: RunCfg, tokenizer: Tokenizer) -> PhaseData:
    """Open the token files of a phase as sequences of T tokens; build missing ones.

    DataError if a source has too little for one of its splits, or no source has the kind of text that is read.
    """
    data, T, want = cfg.data, cfg.model.T, WANTS[cfg.phase]
    sources = select_sources(data.mixture(), want)
    if left_out := [source.label for source in data.mixture() if source not in sources]:
        log.info("%s: no %s in %s; left out", cfg.phase, want, ", ".join(left_out))
    held_out = [source for source in sources if data.val_source in ("", source.label)]
    if not held_out:
        raise DataError(
            f"val_source={data.val_source} has no {want}, but {cfg.phase} needs some to validate on",
            f"use one of {', '.join(source.label for source in sources)}, or leave val_source out",
        )

    def open_split(source: SourceCfg, cache: TokenCache, split: str, seed: int) -> Source:
        try:
            return STREAMS[want](cache.open(split), T, seed, isolate=cfg.isolate)
        except DataError as error:
            hint, needed = error.hint, 1.4 * (T + 1) / max(1, cache.meta.splits["train"].ids.count)
            if split == "val" and not source.held_out() and data.val_fraction < needed < 0.5:
                hint = f"use data.val_fraction={needed:.2f}, add more text or lower model.T"
            raise DataError(f"{source.label}, {split} split: {error}", hint) from None

    train: list[Source] = []
    val: dict[str, tuple[Source, float]] = {}
    text, val_text, described, caches = [], [], {}, []
    for source in sources:
        cache = open_cache(source, want, tokenizer, data, T + 1)
        caches.append((source, cache))
        # Older checkpoints know of no other targets than the assistant's, of no budget and of no isolation.
        targets = [source.learn] if want == "dialogues" and source.learn != "assistant" else []
        budget = [source.max_tokens] if source.max_tokens else []
        isolated = ["isolate"] if cfg.isolate else []
        text.append((cache.meta.content_sha256, source.weight, *targets, *budget, *isolated))
        described[source.label] = describe(source) | {
            "val_fraction": data.val_fraction,
            "isolate": cfg.isolate,
            "content": cache.meta.content_sha256[:16],
            f"number of {want}": cache.meta.records,
        }
        train.append(open_split(source, cache, "train", cfg.train.seed))
        if source in held_out:
            name = source.label if source.label not in val else f"{source.label} {len(val) + 1}"
            val[name] = open_split(source, cache, "val", VAL_SEED), source.weight
            val_text.append(text[-1])
    return PhaseData(
        train[0] if len(train) == 1 else Mixture(train, [source.weight for source in sources], cfg.train.seed),
        allocate_sequences(val, cfg.train.eval_sequences),
        hash_parts(text, data.val_fraction),
        hash_parts(val_text, cfg.train.eval_sequences),
        described,
        caches,
    )
