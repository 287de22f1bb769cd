"""The one training loop of every phase, and the one optimizer step."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from niels_gpt.data.batches import Batch, Source, require_valid_ids
from niels_gpt.errors import NonFiniteError
from niels_gpt.loss import IGNORE
from niels_gpt.seeds import derive_seed
from train.artifacts.checkpointing import TrainState, save_step
from train.config.schema import TrainCfgSchema
from train.loop.amp import Amp, amp_factory, choose_loss_scale
from train.loop.early_stopping import is_out_of_patience
from train.loop.evaluate import ValSource, evaluate
from train.loop.logger import RunLogger
from train.loop.nonfinite import find_first_nonfinite
from train.loop.optim import lr_at, set_lr, unscale_gradients

DIVERGED_HINT = (
    "lower train.base_lr or raise train.warmup_steps (for SFT alone sft.train.base_lr, sft.train.warmup_steps); "
    "on mps also try precision=bf16 or precision=off; the run resumes from the last checkpoint, which is intact"
)


def train_loop(
    state: TrainState,
    cfg: TrainCfgSchema,
    train_source: Source,
    val: Sequence[ValSource],
    *,
    out: Path,
    logger: RunLogger,
    origin: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Take steps until `cfg.total_steps`, `cfg.patience` or `stop()` end them; log, evaluate and save when due.

    Checkpoints go to `out`; their train_cfg is `cfg` plus `origin`, the history of the weights.

    NonFiniteError if a loss, gradient or weight is nan or inf; the last checkpoint is intact. DiskError if a
    checkpoint cannot be written; the last one is intact.
    """
    amp = amp_factory(state.model.device, cfg)
    train_cfg = cfg.model_dump() | dict(origin or {})

    def save(*, best: bool) -> None:
        logger.sync()
        save_step(out, state, train_cfg, best=best, keep_last=cfg.keep_last)
        logger.forward(state.step)

    cut_short = not state.evaluated and is_due(state.step, cfg.eval_every, cfg)  # by a stop
    if cut_short and evaluate_state(state, cfg, val, amp, logger, stop):
        save(best=True)
    stopping = stop() or is_out_of_patience(state, cfg.patience, out)
    while state.step < cfg.total_steps and not stopping:
        lr = lr_at(state.step, cfg)
        loss, grad_norm = optimizer_step(state, cfg, train_source, amp, lr)
        state.add_loss(loss)
        improved = False
        if is_due(state.step, cfg.log_every, cfg):
            logger.log_step(state, state.take_mean_loss(), lr, grad_norm.item())
        if is_due(state.step, cfg.eval_every, cfg):
            improved = evaluate_state(state, cfg, val, amp, logger, stop)
        stopping = stop() or is_out_of_patience(state, cfg.patience, out)  # polled once a step
        if improved or stopping or is_due(state.step, cfg.ckpt_every, cfg):
            save(best=improved)
        logger.advance(state.step)


def is_due(step: int, every: int, cfg: TrainCfgSchema) -> bool:
    """Return whether an action is due at `step`; everything is due at the last step."""
    return step % every == 0 or step >= cfg.total_steps


def evaluate_state(
    state: TrainState,
    cfg: TrainCfgSchema,
    val: Sequence[ValSource],
    amp: Amp,
    logger: RunLogger,
    stop: Callable[[], bool],
) -> bool:
    """Evaluate, log the loss and return whether it is the best so far; if stopped, the next process does it again.

    NonFiniteError if the loss is nan or inf.
    """
    loss = evaluate(state.model, val, cfg.B, amp, stop)
    if loss is None:
        return False
    if not math.isfinite(loss.mean):
        raise NonFiniteError(f"step {state.step}: the validation loss is {loss.mean}", DIVERGED_HINT)
    logger.log_evaluation(state, loss)
    state.evaluated = True
    improved = state.best_val_loss is None or loss.mean < state.best_val_loss
    if improved:
        state.best_val_loss, state.best_step = loss.mean, state.step
    return improved


def optimizer_step(
    state: TrainState, cfg: TrainCfgSchema, source: Source, amp: Amp, lr: float
) -> tuple[Tensor, Tensor]:
    """Do one update on B x accum_steps sequences; return the mean loss per target and the gradient norm.

    Both are 0-d tensors on the device. Each microbatch's loss is divided by the mean number of targets of the
    step's microbatches, so that the sum is the exact mean over all targets, however they are split.

    NonFiniteError if the loss or the gradient is nan or inf; the weights are unchanged.
    """
    model, device = state.model.train(), state.model.device
    batch = source.draw(state.sequences, cfg.effective_batch)  # on the CPU
    require_valid_ids(batch, model.cfg.V)
    targets = int((batch.y != IGNORE).sum())
    scale = choose_loss_scale(targets, device, cfg)
    parts = batch.split(cfg.B)

    def backward(part: Batch) -> Tensor:
        x, y, segments = part.to(device)
        with amp():
            loss = model.loss(x, y, targets / cfg.accum_steps, segments)
            loss = loss / cfg.accum_steps
        (loss * scale).backward()
        return loss.detach()

    dropout_seed = derive_seed("dropout", cfg.seed, state.step)
    torch.manual_seed(dropout_seed)
    mean_loss = torch.zeros((), device=device)
    for part in parts:
        mean_loss += backward(part)
    unscale_gradients(model, scale)
    grad_norm = clip_grad_norm_(model.parameters(), cfg.grad_clip or math.inf)
    if not torch.isfinite(mean_loss + grad_norm):  # reads the device once a step
        torch.manual_seed(dropout_seed)
        where = find_first_nonfinite(model, parts, state.sequences, backward)
        losses = f"loss {mean_loss.item()}, gradient norm {grad_norm.item()}"
        message = f"step {state.step + 1}: {losses}, first non-finite value in {where}; the weights are unchanged"
        raise NonFiniteError(message, DIVERGED_HINT)
    set_lr(state.optimizer, lr)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.sequences += cfg.effective_batch
    state.evaluated = False
    return mean_loss, grad_norm
