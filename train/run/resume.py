"""Decide where a phase starts: from its own newest checkpoint, one that the settings name, or new weights."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from niels_gpt.config import Cfg
from niels_gpt.data.token_cache import build_tokenizer
from niels_gpt.errors import CheckpointError, DataError, is_out_of_memory
from niels_gpt.storage import write_text
from niels_gpt.tokenizer import Tokenizer, load_tokenizer
from niels_gpt.weights.checkpoint import phase_folder
from train.artifacts.checkpointing import TrainState, link
from train.artifacts.compatibility import Found, recorded, require_same_model, require_same_origin
from train.artifacts.paths import BEST, LATEST, step_files, step_of, step_path
from train.artifacts.results import WITHOUT_EFFECT
from train.config.schema import RunCfg
from train.loop.amp import amp_factory
from train.loop.evaluate import evaluate
from train.loop.optim import load_averages
from train.run.data import WANTS, PhaseData

log = logging.getLogger("niels_gpt")


class StartingPoint(NamedTuple):
    """The checkpoints that a phase may start from, each read once.

    It goes on from `own`, its newest good one; else from `earlier`, which resume=PATH names; else it takes the
    weights of `initial`; else its weights are new.
    """

    own: Found | None
    earlier: Found | None
    initial: Found | None


def starting_point(cfg: RunCfg, before: Path | None) -> StartingPoint:
    """Read the checkpoints that the settings ask for; `before` is the folder of the phase before, in a pipeline.

    Raises:
        CheckpointError: one cannot be used, and the phase has none of its own yet.
    """
    own = newest(cfg.out)

    def read(path: Path) -> Found | None:
        try:
            return Found.at(path)
        except (CheckpointError, OSError) as error:
            if not own:
                raise
            log.warning("warning: %s; %s goes on from a checkpoint of its own", error, cfg.phase)
            return None

    earlier = initial = None
    if cfg.resume not in ("auto", "never"):
        earlier = read(checkpoint_path(cfg.resume))
    if before:
        initial = read(before / BEST) if own else best_in(before)
    elif cfg.init_from:
        initial = read(checkpoint_path(cfg.init_from))
    return StartingPoint(own, earlier, initial)


def restore(
    state: TrainState, start: StartingPoint, cfg: RunCfg, tokenizer: Tokenizer, data: PhaseData
) -> dict[str, Any]:
    """Resume or warm-start `state`; return the origin that its checkpoints will record.

    Raises:
        CheckpointError: a checkpoint is of another model, tokenizer, phase or text.
    """
    own, earlier, initial = start
    origin: dict[str, Any] = {"phase": cfg.phase, "tokenizer": tokenizer.hash(), "data": data.content_hash}
    origin["optim"] = cfg.train.optim  # whose averages are in the checkpoint
    if initial:
        origin["init_from"] = initial.described
    if earlier:
        require_same_origin(earlier, origin)
        origin["resume"] = earlier.described
    if own:
        require_same_origin(own, origin)
    if found := own or earlier:
        resume(state, found)
        log.info("%s: resumed from step %d", cfg.phase, state.step)
        origin = recorded(found) | origin
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


def newest(folder: Path) -> Found | None:
    """Return the checkpoint with the highest step that is undamaged, or None where there is none at all.

    Damaged ones are named, and set aside under another name, where they are in nobody's way.

    Raises:
        CheckpointError: there are checkpoints, but every one is damaged.
    """
    refused: list[tuple[Path, CheckpointError]] = []
    for path in _candidates(folder):
        try:
            found = _read_step(path)
        except CheckpointError as error:
            refused.append((path, error))
        else:
            for damaged, why in refused:
                log.warning("warning: %s; using step %d", why, found.saved["step"])
                _set_aside(damaged)
            return found
    if refused:
        lines = [str(error) for _, error in refused]
        raise CheckpointError("\n".join(lines), "choose another name=... to start anew, or init_from=PATH")
    return None


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield the checkpoints, the latest step first; latest.pt and best.pt where they are files of their own.

    latest.pt mostly is a second name of the newest step, and damaged with it, unless one was copied.
    """
    steps = step_files(folder)
    seen: list[Path] = []
    for path in [*steps[:1], folder / LATEST, *steps[1:], folder / BEST]:
        if path.exists() and not any(path.samefile(other) for other in seen):
            seen.append(path)
            yield path


def _read_step(path: Path) -> Found:
    """Return a checkpoint; one named by its step has to be of that step."""
    found = Found.at(path)
    if (named := step_of(path)) is not None and (step := found.saved["step"]) != named:
        raise CheckpointError(f"{path} is damaged (it holds step {step})", "use an earlier checkpoint")
    return found


def _set_aside(path: Path) -> None:
    """Keep a damaged file for who wants to look at it, but count it as a step no more."""
    if step_of(path) is not None:
        path.replace(path.with_name(f"{path.name}.damaged"))


def best_in(folder: Path) -> Found:
    """Return best.pt of a finished phase; the newest good step stands in for one that is damaged.

    Raises:
        CheckpointError: none of its checkpoints is good.
    """
    try:
        return Found.at(folder / BEST)
    except CheckpointError as error:
        if not (found := newest(folder)):
            raise
        log.warning("warning: %s; step %d stands in", error, found.saved["step"])
        link(found.path, folder / BEST)
        return found


def mend_names(state: TrainState, folder: Path) -> Found | None:
    """Let latest.pt mean the step that a run goes on from, and return best.pt if there is a good one.

    A kill may have come between a step and its second name. Without a good best.pt this step stands in, and it is
    evaluated again if an evaluation is due.
    """
    own = step_path(folder, state.step)
    if own.exists() and not ((folder / LATEST).exists() and own.samefile(folder / LATEST)):
        link(own, folder / LATEST)
    if state.best_val_loss is None:
        return None
    try:
        return Found.at(folder / BEST)
    except CheckpointError as error:
        state.best_val_loss, state.evaluated = None, False
        if (folder / LATEST).exists():
            log.warning("warning: %s; step %d stands in until the next evaluation", error, state.step)
            link(folder / LATEST, folder / BEST)
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


def resume(state: TrainState, found: Found) -> None:
    """Go on from a checkpoint: weights, optimizer, step and best loss.

    Raises:
        CheckpointError: the checkpoint is of another model; the message is a table of what differs.
    """
    warm_start(state, found)
    try:
        load_averages(state.optimizer, found.saved["optimizer_state"], found.saved["step"])
    except Exception as error:  # torch looks at little of what it loads, and trips over the rest in any way
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{found.path}: its optimizer_state does not fit its model ({error})",
            "use init_from=PATH to take the weights alone",
        ) from error
    state.step, state.best_val_loss = found.saved["step"], found.saved["best_val_loss"]
    state.sequences = found.sequences
    state.evaluated = bool(found.saved["train_cfg"].get("evaluated"))  # an older one does not say: once more, then


def warm_start(state: TrainState, found: Found) -> None:
    """Take the weights alone from a checkpoint.

    Raises:
        CheckpointError: the checkpoint is of another model; the message is a table of what differs.
    """
    require_same_model(found, state.model.cfg)
    state.model.load_state_dict(found.saved["model_state"])


def changed_settings(saved: dict[str, Any], **now: Cfg) -> Iterator[dict[str, Any]]:
    """Yield the settings in which a resumed run's `model` and `train` differ from those that were saved."""
    for part, cfg in now.items():
        then = saved[f"{part}_cfg"]
        for key, value in cfg.model_dump().items():
            if key in then and then[key] != value:
                yield {"step": saved["step"], "setting": f"{part}.{key}", "before": then[key], "after": value}


def open_tokenizer(cfg: RunCfg, start: StartingPoint) -> Tokenizer:
    """Return the run's own tokenizer once it has begun, else that of the weights it starts from, or a new one.

    Raises:
        DataError: the text does not give model.V entries, or the tokenizer is of another size.
        CheckpointError: the weights to start from have no tokenizer beside them.
    """
    begun = any(Path(cfg.dir).glob("*/*.pt"))
    theirs = start.earlier or start.initial
    if not begun and theirs:
        adopt_tokenizer(theirs.path, cfg.tokenizer_path)
    elif not begun or not cfg.tokenizer_path.exists():
        build_tokenizer(cfg.data, WANTS[cfg.phase], cfg.model.V).save(cfg.tokenizer_path)
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
    """Return the checkpoint that a setting names; a phase's folder stands for the best one in it."""
    path = Path(asked)
    return path / BEST if path.is_dir() else path
