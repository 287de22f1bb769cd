"""Compare the precisions on a run's weights by how much of a step's gradient each of them keeps."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from niels_gpt.data.batches import Batch, require_ids
from niels_gpt.device import resolve_device
from niels_gpt.errors import CheckpointError, DataError
from niels_gpt.loss import IGNORE
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import load_tokenizer
from niels_gpt.untrusted import explain_first_error
from niels_gpt.weights.checkpoint import phase_folder
from train.artifacts.compatibility import LoadedCheckpoint, require_same_model
from train.artifacts.results import RESULT, read_results
from train.cli.output import format_table
from train.config.schema import RunCfg, TrainCfgSchema
from train.hardware.preflight import check_device
from train.loop.amp import DTYPES, loss_scale
from train.loop.optim import unscale_gradients
from train.run.resume import checkpoint_path
from train.run.runner import OPEN_DATA

FP32, TOTAL = "fp32", "total"
PRECISIONS: dict[str, dict[str, Any]] = {
    FP32: {"amp": False},
    "fp16": {"amp": True, "amp_dtype": "fp16", "loss_scaling": False},
    "fp16_scaled": {"amp": True, "amp_dtype": "fp16", "loss_scaling": True},
    "bf16": {"amp": True, "amp_dtype": "bf16", "loss_scaling": False},
}
MPS = torch.device("mps")  # where precision takes effect; on the CPU it is emulated with that device's settings
EMULATED = 'low precision is emulated with torch.autocast("cpu"): close to mps, but not bit-identical'
ROUNDINGS = 8  # an error below so many roundings of a dtype averages out; a larger one loses gradient
NARROW = 0.25  # of a dtype's range; activations beyond it may leave the range as training goes on


@dataclass(frozen=True)
class PartError:
    """A part of a gradient against fp32; `flushed` is the share that became 0 and was not 0 in fp32."""

    cosine: float
    error: float
    flushed: float


@dataclass(frozen=True)
class PrecisionResult:
    """A precision against fp32. Losses in nats a target; errors are relative."""

    name: str
    scale: float
    loss: float
    loss_difference: float
    largest_activation: float
    dtype_max: float
    parts: dict[str, PartError]
    verdict: str = ""


@dataclass(frozen=True)
class PrecisionComparison:
    """The checkpoint and batch of a comparison, and a row for each precision."""

    checkpoint: str
    step: int
    device: str
    how: str
    torch: str
    sequences: int
    tokens: int
    targets: int
    rows: list[PrecisionResult]


class Gradient(NamedTuple):
    """A step's loss scale, mean loss a target, gradient by part, and largest absolute activation."""

    scale: float
    loss: float
    parts: dict[str, Tensor]
    largest: float


def compare_precisions(path: Path, sequences: int | None = None) -> PrecisionComparison:
    """Compare the precisions on the batch that a run would learn from next.

    `path` is a run folder, a phase's folder or a checkpoint in one. fp32 is computed twice; its row shows the
    error of repeating it on this device, 0 on the CPU. Dropout is off, since other masks change the gradient.

    Raises:
        NielsError: the checkpoint, its settings or its data cannot be used.
    """
    checkpoint = choose_checkpoint(path)
    found = LoadedCheckpoint.load(checkpoint)
    cfg, device = read_settings(checkpoint), resolve_device("auto")
    check_device(device, cfg)
    model = load_model(found, cfg, device)
    batch, targets = draw_next_batch(found, cfg, sequences or cfg.train.effective_batch)
    gradients = {name: compute_gradient(name, model, cfg.train, batch, targets) for name in PRECISIONS}
    reference = compute_gradient(FP32, model, cfg.train, batch, targets)
    rows = [compare_gradients(name, gradient, reference) for name, gradient in gradients.items()]
    return PrecisionComparison(
        checkpoint=str(found.path),
        step=found.saved["step"],
        device=device.type,
        how="low precision is the device's own" if device.type == "mps" else EMULATED,
        torch=torch.__version__,
        sequences=len(batch.x),
        tokens=batch.x.numel(),
        targets=targets,
        rows=add_verdicts(rows, targets),
    )


def choose_checkpoint(path: Path) -> Path:
    """Return the checkpoint at a path; for a run folder, the best checkpoint of its last phase.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    if not path.is_dir() or (path / "best.pt").exists():
        return checkpoint_path(str(path))
    results = read_results(path)
    last = results.get("sft") or results.get("pretrain")
    if last is None:
        raise CheckpointError(
            f"{path} has no {RESULT} that names a finished phase",
            "name a run folder, such as runs/default, whose training has finished",
        )
    return checkpoint_path(str(path / last.checkpoint))


def read_settings(checkpoint: Path) -> RunCfg:
    """Return the settings of the phase that a checkpoint belongs to, from its run's results.

    Raises:
        CheckpointError: they are missing or belong to another version of the project.
    """
    out = phase_folder(checkpoint)
    folder, phase = out.parent, out.name
    result = {str(name): result for name, result in read_results(folder).items()}.get(phase)
    if result is None:
        raise CheckpointError(
            f"{folder / RESULT} has no settings of a phase {phase}, which {checkpoint} needs",
            "give a checkpoint of a finished phase in its run folder, such as runs/<name>/<phase>/best.pt",
        )
    kept = {key: result.settings.get(key) for key in ("model", "data", "train")}
    if isinstance(train := kept["train"], dict) and "effective_batch" in train:  # batch=auto keeps no more
        rest = {key: value for key, value in train.items() if key != "effective_batch"}
        kept["train"] = rest | {"B": 1, "accum_steps": train["effective_batch"]}
    own = {"name": folder.name, "phase": phase, "dir": str(folder)}
    try:
        return RunCfg.model_validate_json(json.dumps(own | kept))  # JSON's lists are the settings' tuples
    except ValidationError as error:
        raise CheckpointError(
            f"{folder / RESULT}: the settings of {phase} cannot be used ({': '.join(explain_first_error(error))})",
            "train again with this version of the project",
        ) from None


def load_model(found: LoadedCheckpoint, cfg: RunCfg, device: torch.device) -> GPT:
    """Return the checkpoint's model ready to learn, without dropout; recomputation saves memory.

    Raises:
        CheckpointError: the weights belong to another model.
    """
    require_same_model(found, cfg.model, str(Path(cfg.dir) / RESULT))
    model = GPT(cfg.model.model_copy(update={"dropout": 0.0}), activation_checkpointing=True)
    model.load_state_dict(found.saved["model_state"])
    return model.to(device).train()


def draw_next_batch(found: LoadedCheckpoint, cfg: RunCfg, sequences: int) -> tuple[Batch, int]:
    """Return the sequences of the step after the checkpoint, and their number of targets."""
    batch = OPEN_DATA[cfg.phase](cfg, load_tokenizer(cfg.tokenizer_path)).train.draw(found.sequences, sequences)
    require_ids(batch, cfg.model.V)
    targets = int((batch.y != IGNORE).sum())
    if not targets:
        raise DataError(f"the {sequences} sequences contain no targets", "increase --sequences")
    return batch, targets


def compute_gradient(name: str, model: GPT, train: TrainCfgSchema, batch: Batch, targets: int) -> Gradient:
    """Compute the gradient of a step as training does, in microbatches, without changing the weights."""
    cfg, device = train.model_copy(update=PRECISIONS[name]), model.device
    amp = partial(torch.autocast, device.type, dtype=DTYPES[cfg.amp_dtype], enabled=cfg.amp)
    scale = loss_scale(targets, MPS, cfg)
    loss = torch.zeros((), device=device)
    model.zero_grad()
    with watch_activations(model) as largest:
        for x, y in zip(batch.x.split(cfg.B), batch.y.split(cfg.B), strict=True):
            with amp():
                share = model.loss(x.to(device), y.to(device), targets)
            (share * scale).backward()
            loss += share.detach()
    unscale_gradients(model, scale)
    return Gradient(scale, loss.item(), split_gradient(model), max(value.item() for value in largest))


@contextmanager
def watch_activations(model: GPT) -> Iterator[list[Tensor]]:
    """Collect the largest absolute input and output of each call of a projection.

    The inputs include the gated product and the attended values, which no module returns.
    """
    seen: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.extend(tensor.detach().abs().amax().float() for tensor in (inputs[0], output))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def split_gradient(model: GPT) -> dict[str, Tensor]:
    """Return the gradient on the CPU, one vector for the embedding, each block, the last norm and the head."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        words = name.split(".")
        part = ".".join(words[:2]) if words[0] == "blocks" else words[0]
        parts.setdefault(part, []).append(parameter.grad.flatten().cpu())
    return {part: torch.cat(vectors) for part, vectors in parts.items()}


def compare_gradients(name: str, ours: Gradient, reference: Gradient) -> PrecisionResult:
    """Compare a precision's gradient with that of fp32."""
    sums = {part: _sum_products(ours.parts[part], exact) for part, exact in reference.parts.items()}
    sums[TOTAL] = [sum(column) for column in zip(*sums.values(), strict=True)]
    parts = {}
    for part, (aa, bb, ab, difference, flushed, entries) in sums.items():
        lengths = math.sqrt(aa * bb)
        parts[part] = PartError(
            cosine=ab / lengths if lengths else float(aa == bb),
            error=math.sqrt(difference / bb) if bb else float(difference > 0),
            flushed=flushed / entries if entries else 0.0,
        )
    difference, largest = ours.loss - reference.loss, torch.finfo(_dtype(name)).max
    return PrecisionResult(name, ours.scale, ours.loss, difference, ours.largest, largest, parts)


def _sum_products(ours: Tensor, exact: Tensor) -> list[float]:
    """Return the sums that a comparison needs; the sums of all parts add up to those of the whole gradient."""
    a, b = ours.double(), exact.double()  # squares of small gradients are below fp32's range
    flushed = (a == 0) & (b != 0)
    return [float(terms.sum()) for terms in (a * a, b * b, a * b, (a - b).square(), flushed, b != 0)]


def _dtype(name: str) -> torch.dtype:
    return DTYPES[PRECISIONS[name]["amp_dtype"]] if PRECISIONS[name]["amp"] else torch.float32


def add_verdicts(rows: Sequence[PrecisionResult], targets: int) -> list[PrecisionResult]:
    """Return the rows with verdicts, which recommend a precision from its error against fp32."""
    good = {row.name for row in rows if _keeps_gradient(row)}
    advice = " or ".join(f"precision={name}" for name in ("bf16", "fp16_scaled") if name in good)
    advice = advice or "precision=off"
    return [replace(row, verdict=f"{row.name}: {_judge(row, targets, advice)}") for row in rows]


def _keeps_gradient(row: PrecisionResult) -> bool:
    """Return whether only rounding separates the gradient from that of fp32; False if it is not finite."""
    return row.parts[TOTAL].error <= ROUNDINGS * torch.finfo(_dtype(row.name)).eps and math.isfinite(row.loss)


def _judge(row: PrecisionResult, targets: int, advice: str) -> str:
    error = row.parts[TOTAL].error
    if row.name == FP32:
        repeated = f"; repeated with an error of {error:.1e}" if error else ", repeated exactly"
        return f"the reference for the others{repeated}"
    if not math.isfinite(error + row.loss + row.largest_activation):
        return f"overflows: loss, gradient or activations are not finite; use {advice}"
    if not _keeps_gradient(row):
        return f"{_percent(min(1.0, error))} of the gradient is lost at {targets} targets; use {advice}"
    reach = row.largest_activation / row.dtype_max
    if reach > NARROW:
        return f"keeps the gradient, but activations reach {_percent(reach)} of its range; use precision=bf16"
    return f"keeps the gradient: {_percent(error)} of rounding at {targets} targets"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def format_comparison(result: PrecisionComparison) -> str:
    """Return the comparison as plain tables and sentences."""
    facts = ["precision", "scale", "loss", "difference", "largest activation", "dtype's max"]
    losses = [
        [
            *(row.name, f"{row.scale:.0f}", f"{row.loss:.6f}", f"{row.loss_difference:+.1e}"),
            *(f"{row.largest_activation:.4g}", f"{row.dtype_max:.4g}"),
        ]
        for row in result.rows
    ]
    tables = [[facts, *losses]]
    for title, fact, form in (
        ("relative error of the gradient", "error", "{:.2e}"),
        ("cosine with the gradient of fp32", "cosine", "{:.6f}"),
        ("share of the gradient flushed to zero", "flushed", "{:.2%}"),
    ):
        lines = [
            [part, *(form.format(getattr(row.parts[part], fact)) for row in result.rows)]
            for part in result.rows[0].parts
        ]
        tables.append([[title, *(row.name for row in result.rows)], *lines])
    return "\n".join(
        [
            f"{result.checkpoint}, step {result.step}: {result.sequences} sequences, {result.tokens} tokens, "
            f"{result.targets} targets\n{result.device}, torch {result.torch}: {result.how}\n",
            *(format_table(rows, right=range(1, len(rows[0]))) for rows in tables),
            *(row.verdict for row in result.rows),
        ]
    )
