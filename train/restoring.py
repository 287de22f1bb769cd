"""What a phase starts from, as its settings ask: its own checkpoint, one that they name, or new weights."""

import logging
from pathlib import Path

from niels_gpt.errors import CheckpointError
from niels_gpt.tokenizer import Tokenizer
from train.checkpointing import TrainState
from train.fit import Found, recorded, require_same_origin
from train.resuming import changed_settings, mend_names, newest, resume, warm_start
from train.schema import RunCfg
from train.sources import checkpoint_path, content_hash

log = logging.getLogger("niels_gpt")


def restore(state: TrainState, cfg: RunCfg, init_from: Path | None, tokenizer: Tokenizer) -> dict[str, str]:
    """Resume or warm-start `state` as the settings ask; return the origin that checkpoints will record.

    Raises:
        CheckpointError: the checkpoint is damaged, of another model, tokenizer or phase.
    """
    origin = {"phase": cfg.phase, "tokenizer": tokenizer.hash(), "data": content_hash(cfg, tokenizer)}
    origin["optim"] = cfg.train.optim  # whose averages are in the checkpoint
    own = newest(cfg.out)
    initial = _initial(init_from, cfg, own) if init_from else None
    earlier = None if cfg.resume in ("auto", "never") else Found.at(checkpoint_path(cfg.resume))
    if initial:
        origin["init_from"] = initial.described
    if earlier:
        require_same_origin(earlier, origin)
        origin["resume"] = earlier.described
    if own:
        require_same_origin(own, origin)
    if found := own or earlier:
        resume(state, found)
        origin = recorded(found) | origin
        mend_names(state, cfg.out)
        log.info("%s: resumed from step %d", cfg.phase, state.step)
        for change in changed_settings(found.saved, model=cfg.model, train=cfg.train):
            log.warning("%s: changed since then: %s", cfg.phase, change)
    elif initial:
        require_same_origin(initial, {"tokenizer": origin["tokenizer"]})
        warm_start(state, initial)
        log.info("%s: weights from %s, step %d", cfg.phase, initial.path, initial.saved["step"])
    elif cfg.phase == "sft":
        log.warning("sft: starts from random weights; init_from=PATH takes those of a pretrained run")
    return origin


def _initial(path: Path, cfg: RunCfg, own: Found | None) -> Found | None:
    """Read what a phase begins from; a phase that has begun can do without."""
    try:
        return Found.at(path)
    except CheckpointError as error:
        if not own:
            raise
        log.warning("warning: %s; %s goes on from a checkpoint of its own", error, cfg.phase)
        return None
