"""What a phase starts from, as its settings ask: its own checkpoint, one that they name, or new weights."""

import logging
from pathlib import Path
from typing import Any

from niels_gpt.errors import CheckpointError
from niels_gpt.tokenizer import Tokenizer
from train.amp import amp_factory
from train.checkpointing import TrainState
from train.evaluate import evaluate
from train.fit import Found, recorded, require_same_model, require_same_origin
from train.result import WITHOUT_EFFECT
from train.resuming import changed_settings, mend_names, newest, resume, warm_start
from train.schema import RunCfg
from train.sources import PhaseData, checkpoint_path

log = logging.getLogger("niels_gpt")


def restore(
    state: TrainState, cfg: RunCfg, init_from: Path | None, tokenizer: Tokenizer, data: PhaseData
) -> dict[str, Any]:
    """Resume or warm-start `state` as the settings ask; return the origin that checkpoints will record.

    Raises:
        CheckpointError: the checkpoint is damaged, of another model, tokenizer or phase.
    """
    origin: dict[str, Any] = {"phase": cfg.phase, "tokenizer": tokenizer.hash(), "data": data.content_hash}
    origin["optim"] = cfg.train.optim  # whose averages are in the checkpoint
    own = newest(cfg.out)
    initial = _given(init_from, cfg, own) if init_from else None
    asked = None if cfg.resume in ("auto", "never") else checkpoint_path(cfg.resume, must_exist=False)
    earlier = _given(asked, cfg, own) if asked else None
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
        log.info("%s: resumed from step %d", cfg.phase, state.step)
        for change in changed_settings(found.saved, model=cfg.model, train=cfg.train):
            log.warning("%s: changed since then: %s", cfg.phase, "{setting}: {before} -> {after}".format(**change))
            if change["setting"].partition(".")[2] not in WITHOUT_EFFECT - {"total_steps"}:
                origin["changes"] = [*origin.get("changes", []), change]
        best = mend_names(state, cfg.out)
        if best and found.saved["train_cfg"].get("measure") != data.measure:
            _measure_again(state, best, cfg, data)
    elif initial:
        require_same_origin(initial, {"tokenizer": origin["tokenizer"]})
        warm_start(state, initial)
        log.info("%s: weights from %s, step %d", cfg.phase, initial.path, initial.saved["step"])
    elif cfg.phase == "sft":
        log.warning("sft: starts from random weights; init_from=PATH takes those of a pretrained run")
    return origin | {"measure": data.measure}


def _given(path: Path, cfg: RunCfg, own: Found | None) -> Found | None:
    """Read a checkpoint that the settings name; a phase that has one of its own can do without."""
    try:
        return Found.at(path)
    except (CheckpointError, OSError) as error:
        if not own:
            raise
        log.warning("warning: %s; %s goes on from a checkpoint of its own", error, cfg.phase)
        return None


def _measure_again(state: TrainState, best: Found, cfg: RunCfg, data: PhaseData) -> None:
    """Evaluate best.pt on the validation sequences of now: a loss on others does not compare with theirs."""
    require_same_model(best, state.model.cfg)
    own = {name: weight.clone() for name, weight in state.model.state_dict().items()}
    state.model.load_state_dict(best.saved["model_state"])
    loss = evaluate(state.model, data.val, cfg.train.B, amp_factory(state.model.device, cfg.train))
    state.model.load_state_dict(own)
    before, after = state.best_val_loss, loss.mean if loss else None
    log.warning(
        "%s: other validation sequences than before: the best loss, of step %d, is %.4f on them, not %.4f",
        *(cfg.phase, best.saved["step"], after, before),
    )
    state.best_val_loss, state.evaluated = after, False
