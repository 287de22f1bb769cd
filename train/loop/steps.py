"""The one training loop of every phase, and the one optimizer step."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from niels_gpt.data.batches import Batch, Source, require_ids
from niels_gpt.errors import NonFiniteError
from niels_gpt.loss import IGNORE
from niels_gpt.seeds import derived_seed
from train.artifacts.checkpointing import TrainState, save_step
from train.config.schema import TrainCfgSchema
from train.loop.amp import Amp, amp_factory, loss_scale
from train.loop.evaluate import ValSource, evaluate
from train.loop.logger import Report
from train.loop.nonfinite import first_not_finite
from train.loop.optim import clip_gradients, lr_at, set_lr, unscale_gradients

CALMER = (
    "lower train.base_lr (of SFT alone: sft.train.base_lr) or raise train.warmup_steps; on mps try precision=bf16 "
    "or precision=off too; the same command goes on from the last checkpoint, which is good"
)


def train_loop(
    state: TrainState,
    cfg: TrainCfgSchema,
    train_source: Source,
    val: Sequence[ValSource],
    *,
    out: Path,
    report: Report,
    origin: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Take steps until `cfg.total_steps` or until `stop()`; after each, do what is due.

    Checkpoints go to `out`; their train_cfg is `cfg` with `origin`, which says where the weights come from.
    Whether a step was evaluated follows from its checkpoint alone.

    Raises:
        NonFiniteError: a loss, gradient or weight is nan or inf; the last checkpoint stays good.
        DiskError: a checkpoint cannot be written; the last one stays good.
    """
    amp = amp_factory(state.model.device, cfg)
    train_cfg = cfg.model_dump() | dict(origin or {})

    def keep(*, best: bool) -> None:
        report.settle()
        save_step(out, state, train_cfg, best=best, keep_last=cfg.keep_last)

    cut_off = not state.evaluated and is_due(state.step, cfg.eval_every, cfg)  # by a stop
    if cut_off and is_best(state, cfg, val, amp, report, stop):
        keep(best=True)
    stopping = stop()
    while state.step < cfg.total_steps and not stopping:
        lr = lr_at(state.step, cfg)
        loss, grad_norm = optimizer_step(state, cfg, train_source, amp, lr)
        improved = False
        if is_due(state.step, cfg.log_every, cfg):
            report.train(state, loss.item(), lr, grad_norm.item())
        if is_due(state.step, cfg.eval_every, cfg):
            improved = is_best(state, cfg, val, amp, report, stop)
        stopping = stop()  # asked once: what comes after this is for the next step
        if improved or stopping or is_due(state.step, cfg.ckpt_every, cfg):
            keep(best=improved)
        report.advance(state.step)


def is_due(step: int, every: int, cfg: TrainCfgSchema) -> bool:
    """Return whether something that comes `every` so many steps comes now; the last step has everything."""
    return step % every == 0 or step >= cfg.total_steps


def is_best(
    state: TrainState,
    cfg: TrainCfgSchema,
    val: Sequence[ValSource],
    amp: Amp,
    report: Report,
    stop: Callable[[], bool],
) -> bool:
    """Evaluate, note the loss, and return whether it is the best so far; a stop leaves it to the next process.

    Raises:
        NonFiniteError: the loss is nan or inf.
    """
    loss = evaluate(state.model, val, cfg.B, amp, stop)
    if loss is None:
        return False
    if not math.isfinite(loss.mean):
        raise NonFiniteError(f"step {state.step}: the validation loss is {loss.mean}", CALMER)
    report.val(state, loss)
    state.evaluated = True
    improved = state.best_val_loss is None or loss.mean < state.best_val_loss
    if improved:
        state.best_val_loss = loss.mean
    return improved


def optimizer_step(
    state: TrainState, cfg: TrainCfgSchema, source: Source, amp: Amp, lr: float
) -> tuple[Tensor, Tensor]:
    """Do one update on B x accum_steps sequences; return the mean loss a target and the gradient norm.

    Both stay on the device until someone reads them. The sequences are drawn first, so that each microbatch
    is normalised by the mean number of targets of this step's microbatches: the sum is the exact mean over
    all its targets, however they are split.

    Raises:
        NonFiniteError: the loss or the gradient is nan or inf; the weights are as before.
    """
    model, device = state.model.train(), state.model.device
    batch = source.draw(state.sequences, cfg.effective_batch)  # on the CPU
    require_ids(batch, model.cfg.V)
    targets = int((batch.y != IGNORE).sum())
    scale = loss_scale(targets, device, cfg)
    parts = list(map(Batch, batch.x.split(cfg.B), batch.y.split(cfg.B)))

    def backward(part: Batch) -> Tensor:
        with amp():
            loss = model.loss(part.x.to(device), part.y.to(device), targets / cfg.accum_steps)
            loss = loss / cfg.accum_steps
        (loss * scale).backward()
        return loss.detach()

    dropout_seed = derived_seed("dropout", cfg.seed, state.step)
    torch.manual_seed(dropout_seed)
    mean_loss = torch.zeros((), device=device)
    for part in parts:
        mean_loss += backward(part)
    unscale_gradients(model, scale)
    grad_norm = clip_gradients(model, cfg.grad_clip)
    if not torch.isfinite(mean_loss + grad_norm):  # this reads the device once a step
        torch.manual_seed(dropout_seed)
        where = first_not_finite(model, parts, state.sequences, backward)
        said = f"loss {mean_loss.item()}, gradient norm {grad_norm.item()}, not finite first in {where}"
        raise NonFiniteError(f"step {state.step + 1}: {said}; the weights are as before", CALMER)
    set_lr(state.optimizer, lr)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.sequences += cfg.effective_batch
    state.evaluated = False
    return mean_loss, grad_norm
