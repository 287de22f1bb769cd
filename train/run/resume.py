"""Decide where a phase starts: from its own newest checkpoint, one that the settings name, or new weights."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from niels_gpt.adopted_tokenizer import adopt_tokenizer
from niels_gpt.config import Cfg
from niels_gpt.data.cache.token_cache import build_tokenizer
from niels_gpt.data.chat_template import DIALOGUES_VERSION
from niels_gpt.data.validation_split import SPLIT_VERSION
from niels_gpt.errors import CheckpointError, NielsError, is_out_of_memory
from niels_gpt.tokenizer import Tokenizer, load_tokenizer
from niels_gpt.weights.checkpoint import get_phase_folder
from niels_gpt.weights.paths import BEST, LATEST, find_phase, is_hugging_face, parse_step, step_files, step_path
from train.artifacts.checkpointing import TrainState, link_checkpoint
from train.artifacts.compatibility import LoadedCheckpoint, require_same_model, require_same_origin
from train.artifacts.results import NO_EFFECT
from train.config.schema import RunCfg
from train.loop.amp import amp_factory
from train.loop.evaluate import evaluate
from train.loop.optim import load_optimizer_state
from train.run.data import WANTS, PhaseData

log = logging.getLogger("niels_gpt")


class StartingPoint(NamedTuple):
    """The checkpoints that a phase may start from, each read once.

    It resumes from `own`, its newest good one, else from `resume`, which resume=PATH names; without either it
    takes the weights of `init_from`, or new ones.
    """

    own: LoadedCheckpoint | None
    resume: LoadedCheckpoint | None
    init_from: LoadedCheckpoint | None  # beside `own` only for the record


def find_starting_point(cfg: RunCfg, previous: Path | None) -> StartingPoint:
    """Read the checkpoints that a phase may start from; `previous` is the folder of a pipeline's first phase.

    CheckpointError if one cannot be used, and the phase has no checkpoint yet.
    """
    own = find_newest(cfg.out)

    def read(path: Path) -> LoadedCheckpoint | None:
        try:
            return LoadedCheckpoint.load(path)
        except (NielsError, OSError) as error:
            if not own:
                raise
            log.warning("warning: %s; %s resumes from its own checkpoint", error, cfg.phase)
            return None

    resume = init_from = None
    if cfg.resume not in ("auto", "never"):
        resume = read(resolve_checkpoint(cfg.resume))
    if previous:
        init_from = read(previous / BEST) if own else find_best(previous)
    elif cfg.init_from:
        init_from = read(resolve_checkpoint(cfg.init_from))
    return StartingPoint(own, resume, init_from)


def restore(
    state: TrainState, start: StartingPoint, cfg: RunCfg, tokenizer: Tokenizer, data: PhaseData
) -> dict[str, Any]:
    """Load `state` from the starting point; return the origin that its checkpoints will record.

    CheckpointError if a checkpoint has another model, tokenizer, phase or text.
    """
    own, resume, init_from = start
    origin: dict[str, Any] = {"phase": cfg.phase, "tokenizer": tokenizer.hash(), "split": SPLIT_VERSION}
    origin |= {"dialogues": DIALOGUES_VERSION} if cfg.phase == "sft" else {}
    origin |= {"data": data.content_hash, "sources": data.sources}
    origin |= {"optim": cfg.train.optim, "ema": cfg.train.ema}  # whose state the checkpoint holds
    if init_from:
        origin["init_from"] = init_from.description
    if resume:
        require_same_origin(resume, origin)
        origin["resume"] = resume.description
    if own:
        require_same_origin(own, origin)
    if found := own or resume:
        load_state(state, found)
        log.info("%s: resumed from step %d", cfg.phase, state.step)
        then = found.saved["train_cfg"]
        origin = {key: then[key] for key in ("init_from", "resume", "changes") if key in then} | origin
        for change in list_changes(found.saved, model=cfg.model, train=cfg.train):
            log.warning("%s: changed setting: %s", cfg.phase, "{setting} {before} -> {after}".format(**change))
            if change["setting"].partition(".")[2] not in NO_EFFECT:
                origin["changes"] = [*origin.get("changes", []), change]
        best = repair_links_and_load_best(state, cfg.out)
        if best and then.get("val_hash") != data.val_hash:
            _remeasure_best(state, best, cfg, data)
    elif init_from:
        require_same_origin(init_from, {"tokenizer": origin["tokenizer"]})
        step, shape = init_from.saved["step"], init_from.saved["model_cfg"]
        log.info("%s: weights from %s%s", cfg.phase, init_from.path, f", step {step}" if step else "")
        if (T := cfg.model.T) != shape["T"]:
            log.info("%s: model.T=%d; these weights have learned from sequences of %d", cfg.phase, T, shape["T"])
            shape["T"] = T  # no weight depends on it
        load_weights(state, init_from)
    elif cfg.phase == "sft":
        log.warning("sft: starts from random weights; use init_from=PATH to start from a pretrained run")
    return origin | {"val_hash": data.val_hash}


def find_newest(folder: Path) -> LoadedCheckpoint | None:
    """Return the undamaged checkpoint with the highest step, or None if the folder has no checkpoints.

    Damaged ones are logged and renamed to *.damaged.

    CheckpointError if all checkpoints are damaged.
    """
    damaged: dict[Path, CheckpointError] = {}
    for path in _list_candidates(folder):
        try:
            found = LoadedCheckpoint.load(path)
            named, step = parse_step(path), found.saved["step"]
            if named is not None and named != step:
                raise CheckpointError(f"{path} is damaged (it holds step {step})", "use an earlier checkpoint")
        except CheckpointError as error:
            damaged[path] = error
            continue
        for other, reason in damaged.items():
            log.warning("warning: %s; using step %d", reason, step)
            if parse_step(other) is not None:
                other.replace(other.with_name(f"{other.name}.damaged"))
        return found
    if damaged:
        errors = "\n".join(map(str, damaged.values()))
        raise CheckpointError(errors, "start again under another name=..., or use init_from=PATH")
    return None


def _list_candidates(folder: Path) -> Iterator[Path]:
    """Yield the checkpoints, the highest step first, and each file once: latest.pt is usually a second name."""
    steps = step_files(folder)
    seen: list[Path] = []
    for path in [*steps[:1], folder / LATEST, *steps[1:], folder / BEST]:
        if path.exists() and not any(path.samefile(other) for other in seen):
            seen.append(path)
            yield path


def find_best(folder: Path) -> LoadedCheckpoint:
    """Return best.pt of a finished phase; if it is damaged, replace it by the newest good step.

    CheckpointError if all its checkpoints are damaged.
    """
    try:
        return LoadedCheckpoint.load(folder / BEST)
    except CheckpointError as error:
        if not (found := find_newest(folder)):
            raise
        log.warning("warning: %s; replaced by step %d", error, found.saved["step"])
        link_checkpoint(found.path, folder / BEST)
        return found


def repair_links_and_load_best(state: TrainState, folder: Path) -> LoadedCheckpoint | None:
    """Point latest.pt at the step that a run resumes from, and return best.pt, if it is good.

    The process may have been killed between saving a step and linking its second name. A damaged best.pt is
    replaced by this step, which is evaluated again if that is due.
    """
    own = step_path(folder, state.step)
    if own.exists() and not ((folder / LATEST).exists() and own.samefile(folder / LATEST)):
        link_checkpoint(own, folder / LATEST)
    if state.best_val_loss is None:
        return None
    try:
        return LoadedCheckpoint.load(folder / BEST)
    except CheckpointError as error:
        state.best_val_loss, state.evaluated = None, False
        if (folder / LATEST).exists():
            log.warning("warning: %s; replaced by step %d until the next evaluation", error, state.step)
            link_checkpoint(folder / LATEST, folder / BEST)
        return None


def _remeasure_best(state: TrainState, best: LoadedCheckpoint, cfg: RunCfg, data: PhaseData) -> None:
    """Evaluate best.pt on the present validation sequences, since losses on others do not compare."""
    require_same_model(best, state.model.cfg)
    own = {name: weight.clone() for name, weight in state.model.state_dict().items()}
    state.model.load_state_dict(best.saved["model_state"])
    loss = evaluate(state.model, data.val, cfg.train.B, amp_factory(state.model.device, cfg.train))
    state.model.load_state_dict(own)
    after = loss.mean if loss else math.nan
    log.warning(
        "%s: the validation sequences have changed; the loss of best.pt (step %d) was %.4f and is now %.4f",
        *(cfg.phase, best.saved["step"], state.best_val_loss, after),
    )
    state.best_val_loss, state.evaluated = after if math.isfinite(after) else None, False


def load_state(state: TrainState, found: LoadedCheckpoint) -> None:
    """Load weights, optimizer, step and best loss from a checkpoint.

    CheckpointError if the checkpoint holds another model, or its optimizer state does not fit.
    """
    load_weights(state, found)
    try:
        load_optimizer_state(state.optimizer, found.saved["optimizer_state"], found.saved["step"])
    except Exception as error:  # torch checks little of the state, and fails in many ways
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{found.path}: its optimizer_state does not fit its model ({error})",
            "use init_from=PATH to load the weights alone",
        ) from error
    state.step, state.best_val_loss = found.saved["step"], found.saved["best_val_loss"]
    state.sequences = found.sequences
    then = found.saved["train_cfg"]  # older checkpoints lack what follows
    state.evaluated = bool(then.get("evaluated"))
    state.loss_sum, state.loss_steps = float(then.get("loss_sum", 0)), int(then.get("loss_steps", 0))


def load_weights(state: TrainState, found: LoadedCheckpoint) -> None:
    """Load the weights alone from a checkpoint. CheckpointError if the checkpoint holds another model."""
    require_same_model(found, state.model.cfg)
    state.model.load_state_dict(found.saved["model_state"])


def list_changes(saved: dict[str, Any], **now: Cfg) -> Iterator[dict[str, Any]]:
    """Yield the settings of `model` and `train` that differ from the saved ones, with the saved step."""
    for part, cfg in now.items():
        then = saved[f"{part}_cfg"]
        for key, value in cfg.model_dump().items():
            if key in then and then[key] != value:
                yield {"step": saved["step"], "setting": f"{part}.{key}", "before": then[key], "after": value}


def open_tokenizer(cfg: RunCfg) -> Tokenizer:
    """Return the tokenizer of a run, which its folder keeps. Errors as of `choose_tokenizer`."""
    tokenizer, path = choose_tokenizer(cfg)
    if path != cfg.tokenizer_path:
        tokenizer.save(cfg.tokenizer_path)
    return tokenizer


def choose_tokenizer(cfg: RunCfg) -> tuple[Tokenizer, Path | None]:
    """Return the tokenizer of a run that has begun, else that of the weights it starts from, else a new one.

    With it comes the file that it is from, None if it is new.

    DataError if the text gives fewer than model.V entries. CheckpointError if the weights to start from have no
    tokenizer beside them, or one of another size.
    """
    begun = any(Path(cfg.dir).glob("*/*.pt"))
    path, whose, other = cfg.tokenizer_path, str(cfg.tokenizer_path), ", or another name=..."
    adopts = False
    asked = cfg.init_from if cfg.resume in ("auto", "never") else cfg.resume
    if not begun and asked:
        checkpoint = resolve_checkpoint(asked)
        adopts = is_hugging_face(checkpoint)
        folder = checkpoint if adopts else get_phase_folder(checkpoint).parent
        path, whose, other = folder / path.name, f"the tokenizer of {checkpoint}", ""
        if not path.exists():
            raise CheckpointError(
                f"{checkpoint} has no tokenizer at {path}",
                "use a checkpoint inside its run folder, such as runs/<name>/<phase>/best.pt",
            )
    elif not begun or not path.exists():
        return build_tokenizer(cfg.data, WANTS[cfg.phase], cfg.model.V), None
    if adopts:
        adopting = cfg.data.model_copy(update={"tokenizer": str(path)})
        tokenizer = build_tokenizer(adopting, WANTS[cfg.phase], cfg.model.V)
    else:
        tokenizer = load_tokenizer(path)
    if tokenizer.V != cfg.model.V:
        raise CheckpointError(
            f"model.V={cfg.model.V}, but {whose} has {tokenizer.V} entries", f"use model.V={tokenizer.V}{other}"
        )
    given = cfg.data.tokenizer
    if given.endswith(".json") and adopt_tokenizer(Path(given)).tokenizer.hash() != tokenizer.hash():
        raise CheckpointError(
            f"data.tokenizer={given} is not {path}, with which the weights were trained",
            f"use data.tokenizer={path}, or another name=...",
        )
    return tokenizer, path


def resolve_checkpoint(asked: str) -> Path:
    """Return the path of the checkpoint that a setting names, or a Hugging Face folder.

    A phase's folder stands for its best.pt, and a run's for that of its last phase.
    """
    path = Path(asked)
    return path if is_hugging_face(path) or not path.is_dir() else (find_phase(path) or path) / BEST
