"""Compare the precisions on a run's weights by how much of a step's gradient each of them keeps."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from niels_gpt.data.batches import Batch, require_valid_ids
from niels_gpt.device import resolve_device
from niels_gpt.errors import CheckpointError, DataError
from niels_gpt.loss import IGNORE
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import load_tokenizer
from niels_gpt.untrusted import explain_first_error
from niels_gpt.weights.checkpoint import get_phase_folder
from train.artifacts.compatibility import LoadedCheckpoint, require_same_model
from train.artifacts.results import RESULT, read_results
from train.cli.output import format_table
from train.config.schema import RunCfg, TrainCfgSchema
from train.hardware.preflight import check_device
from train.loop.amp import choose_loss_scale
from train.loop.optim import unscale_gradients
from train.run.data import open_data
from train.run.resume import resolve_checkpoint

FP32, SCALED = "fp32", "fp16_scaled"
DTYPES = {FP32: torch.float32, "fp16": torch.float16, SCALED: torch.float16, "bf16": torch.bfloat16}
MPS = torch.device("mps")  # where precision takes effect; on the CPU it is emulated with that device's settings
EMULATED = 'low precision is emulated with torch.autocast("cpu"): close to mps, but not bit-identical'
ROUNDINGS = 8  # an error below so many roundings of a dtype averages out; a larger one loses gradient


@dataclass(frozen=True)
class PrecisionResult:
    """A precision against fp32: loss in nats a target, and the relative error of the gradient."""

    name: str
    scale: float
    loss: float
    error: float


@dataclass(frozen=True)
class PrecisionComparison:
    """The checkpoint and batch of a comparison, and a row and a verdict for each precision."""

    checkpoint: str
    step: int
    device: str
    torch: str
    sequences: int
    tokens: int
    targets: int
    rows: list[PrecisionResult]
    verdicts: list[str]


class Gradient(NamedTuple):
    """A step's loss scale, mean loss a target, and the gradient of each parameter, on the CPU."""

    scale: float
    loss: float
    tensors: list[Tensor]


def compare_precisions(path: Path, sequences: int | None = None) -> PrecisionComparison:
    """Compare the precisions on the batch that a run would learn from next.

    `path` is a run folder, of which the last phase counts, a phase's folder or a checkpoint in one. fp32 is
    computed twice; its row shows the error of repeating it on this device, 0 on the CPU. Dropout is off, since
    other masks change the gradient.

    NielsError if the checkpoint, its settings or its data cannot be used.
    """
    checkpoint = resolve_checkpoint(path)
    found = LoadedCheckpoint.load(checkpoint)
    cfg, device = read_settings(checkpoint), resolve_device("auto")
    check_device(device, cfg)
    require_same_model(found, cfg.model, str(Path(cfg.dir) / RESULT))
    model = GPT(cfg.model.model_copy(update={"dropout": 0.0}), activation_checkpointing=True)  # saves memory
    model.load_state_dict(found.saved["model_state"])
    model.to(device).train()
    data = open_data(cfg, load_tokenizer(cfg.tokenizer_path))
    batch = data.train.draw(found.sequences, sequences or cfg.train.effective_batch)
    require_valid_ids(batch, cfg.model.V)
    targets = int((batch.y != IGNORE).sum())
    if not targets:
        raise DataError(f"the {len(batch.x)} sequences contain no targets", "increase --sequences")
    compute = partial(compute_gradient, model=model, train=cfg.train, batch=batch, targets=targets)
    reference = compute(FP32)
    rows = [compare_gradients(name, compute(name), reference) for name in DTYPES]
    return PrecisionComparison(
        checkpoint=str(checkpoint),
        step=found.saved["step"],
        device=device.type,
        torch=torch.__version__,
        sequences=len(batch.x),
        tokens=batch.x.numel(),
        targets=targets,
        rows=rows,
        verdicts=judge_precisions(rows, targets),
    )


def read_settings(checkpoint: Path) -> RunCfg:
    """Return the settings of the phase that a checkpoint belongs to, from its run's results.

    CheckpointError if they are missing or belong to another version of the project.
    """
    out = get_phase_folder(checkpoint)
    folder, phase = out.parent, out.name
    result = {str(name): result for name, result in read_results(folder).items()}.get(phase)
    if result is None:
        raise CheckpointError(
            f"{folder / RESULT} has no settings of a phase {phase}, which {checkpoint} needs",
            "give a checkpoint of a finished phase in its run folder, such as runs/<name>/<phase>/best.pt",
        )
    kept = {key: result.settings.get(key) for key in ("model", "data", "train")}
    if isinstance(train := kept["train"], dict) and "effective_batch" in train:  # batch=auto keeps no more
        train |= {"B": 1, "accum_steps": train.pop("effective_batch")}
    own = {"name": folder.name, "phase": phase, "dir": str(folder)}
    try:
        return RunCfg.model_validate_json(json.dumps(own | kept))  # JSON's lists are the settings' tuples
    except ValidationError as error:
        raise CheckpointError(
            f"{folder / RESULT}: the settings of {phase} cannot be used ({': '.join(explain_first_error(error))})",
            "train again with this version of the project",
        ) from None


def compute_gradient(name: str, model: GPT, train: TrainCfgSchema, batch: Batch, targets: int) -> Gradient:
    """Compute the gradient of a step as training does, in microbatches, without changing the weights."""
    scaling = {"amp": True, "amp_dtype": "fp16", "loss_scaling": name == SCALED}
    scale = choose_loss_scale(targets, MPS, train.model_copy(update=scaling))
    device = model.device
    loss = torch.zeros((), device=device)
    model.zero_grad()
    for part in batch.split(train.B):
        x, y, segments = part.to(device)
        with torch.autocast(device.type, dtype=DTYPES[name], enabled=name != FP32):
            share = model.loss(x, y, targets, segments)
        (share * scale).backward()
        loss += share.detach()
    unscale_gradients(model, scale)
    return Gradient(scale, loss.item(), [p.grad.cpu() for p in model.parameters() if p.grad is not None])


def compare_gradients(name: str, ours: Gradient, reference: Gradient) -> PrecisionResult:
    """Compare a precision's gradient with that of fp32."""
    difference = size = 0.0
    for given, expected in zip(ours.tensors, reference.tensors, strict=True):
        exact = expected.double()  # squares of small gradients are below fp32's range
        difference += float((given.double() - exact).square().sum())
        size += float(exact.square().sum())
    return PrecisionResult(name, ours.scale, ours.loss, math.sqrt(difference / size))


def judge_precisions(rows: Sequence[PrecisionResult], targets: int) -> list[str]:
    """Recommend a precision from the error of each against fp32, a sentence for each."""
    good = {
        row.name
        for row in rows
        if row.error <= ROUNDINGS * torch.finfo(DTYPES[row.name]).eps and math.isfinite(row.loss)
    }
    advice = " or ".join(f"precision={name}" for name in ("bf16", SCALED) if name in good) or "precision=off"
    verdicts = []
    for row in rows:
        if row.name == FP32:
            verdict = f"the reference; repeating it gives an error of {row.error:.1e}"
        elif not math.isfinite(row.error + row.loss):
            verdict = f"overflows: loss or gradient is not finite; use {advice}"
        elif row.name not in good:
            verdict = f"{min(1.0, row.error):.1%} of the gradient is lost at {targets} targets; use {advice}"
        else:
            verdict = f"keeps the gradient: {100 * row.error:.2g}% rounding error at {targets} targets"
        verdicts.append(f"{row.name}: {verdict}")
    return verdicts


def format_comparison(result: PrecisionComparison) -> str:
    """Return the comparison as a table and sentences."""
    rows = result.rows
    lines = [
        ["", *(row.name for row in rows)],
        ["loss scale", *(f"{row.scale:.0f}" for row in rows)],
        ["loss", *(f"{row.loss:.6f}" for row in rows)],
        ["gradient error", *(f"{row.error:.2e}" for row in rows)],
    ]
    return "\n".join(
        [
            f"{result.checkpoint}, step {result.step}: {result.sequences} sequences, {result.tokens} tokens, "
            f"{result.targets} targets",
            f"{result.device}, torch {result.torch}{'' if result.device == 'mps' else f': {EMULATED}'}\n",
            format_table(lines, right=range(1, len(lines[0]))),
            *result.verdicts,
        ]
    )
