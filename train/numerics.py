"""Compares the precisions on a run's own weights: what each of them leaves of the gradient of one step.

Shapes: N sequences of T tokens.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from niels_gpt.data.batches import Batch, require_ids
from niels_gpt.device import resolve_device
from niels_gpt.errors import CheckpointError, ConfigError, DataError
from niels_gpt.loss import IGNORE
from niels_gpt.model.gpt import GPT
from niels_gpt.weights import read_checkpoint
from train.amp import DTYPES, loss_scale
from train.config import RunCfg, TrainCfgSchema
from train.optim import unscale_gradients
from train.preflight import preflight
from train.result import RESULT, read_results
from train.run import SOURCES
from train.sources import checkpoint_path

MPS = torch.device("mps")  # where precision takes effect; on the CPU it is emulated with that device's settings
TOTAL = "total"
ROUNDINGS = 8  # an error of so many of a dtype's steps is rounding, which averages out; above it lies a loss
NARROW = 0.25  # of a dtype's range; activations that reach further may leave it as training goes on


class LowHead(GPT):
    """The negative study: a head that computes in the precision of the rest."""

    def _head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embedding.weight)


@dataclass(frozen=True)
class Precision:
    """A way to compute; `setting` is what chooses it, empty where nothing does. fp32 has amp off."""

    name: str
    setting: str
    amp_dtype: Literal["fp16", "bf16"] = "fp16"
    amp: bool = True
    loss_scaling: bool = False
    model: type[GPT] = GPT

    @property
    def dtype(self) -> torch.dtype:
        """What projections compute in."""
        return DTYPES[self.amp_dtype] if self.amp else torch.float32

    def applied(self, cfg: TrainCfgSchema) -> TrainCfgSchema:
        """Return a phase's settings in this precision."""
        return cfg.model_copy(
            update={"amp": self.amp, "amp_dtype": self.amp_dtype, "loss_scaling": self.loss_scaling}
        )


FP32 = Precision("fp32", "off", amp=False)
PRECISIONS = (
    FP32,
    Precision("fp16", "fp16"),
    Precision("fp16_scaled", "fp16_scaled", loss_scaling=True),
    Precision("bf16", "bf16", amp_dtype="bf16"),
    Precision("fp16, head in fp16", "", model=LowHead),
)


@dataclass(frozen=True)
class Subject:
    """What is studied: a phase's settings, weights and the device to compute on."""

    cfg: RunCfg
    saved: dict[str, Any]
    device: torch.device


@dataclass(frozen=True)
class Pass:
    """What a precision computed: mean loss a target, gradient by part, largest absolute activation."""

    scale: float
    loss: float
    gradient: dict[str, Tensor]
    largest: float


@dataclass(frozen=True)
class Part:
    """How a part of a gradient compares with fp32; `flushed` is the share that became 0 and was not in fp32."""

    cosine: float
    error: float
    flushed: float


@dataclass(frozen=True)
class Row:
    """How a precision compares with fp32. Losses in nats a target; `error` is relative, in `parts`."""

    name: str
    scale: float
    loss: float
    loss_difference: float
    largest_activation: float
    dtype_max: float
    parts: dict[str, Part]
    verdict: str = ""


@dataclass(frozen=True)
class Numerics:
    """What was compared, on what, and what came out, the verdicts included."""

    checkpoint: str
    step: int
    device: str
    how: str
    torch: str
    sequences: int
    tokens: int
    targets: int
    rows: list[Row]


def numerics(path: Path, sequences: int | None = None) -> Numerics:
    """Compare the precisions on a batch that a run would learn from next.

    `path` is a run folder, a phase's folder or a checkpoint in one. fp32 is computed twice: its own row is what
    the device does not repeat exactly, 0 on the CPU. Dropout is off, since other masks are another gradient.

    Raises:
        NielsError: the checkpoint, its settings or its data cannot be used.
    """
    checkpoint = chosen_checkpoint(path)
    subject = opened(checkpoint)
    batch, targets = next_batch(subject, sequences or subject.cfg.train.effective_batch)
    reference = computed(FP32, subject, batch, targets)
    rows = [compared(p, computed(p, subject, batch, targets), reference) for p in PRECISIONS]
    return Numerics(
        checkpoint=str(checkpoint),
        step=subject.saved["step"],
        device=subject.device.type,
        how=how(subject.device),
        torch=torch.__version__,
        sequences=len(batch.x),
        tokens=batch.x.numel(),
        targets=targets,
        rows=list(with_verdicts(rows, targets)),
    )


def how(device: torch.device) -> str:
    """Say whether these are the numbers of a Mac."""
    if device.type == "mps":
        return "low precision is the device's own"
    return f'low precision is emulated with torch.autocast("{device.type}"): near what mps does, not to the bit'


def chosen_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path stands for: of a run folder the best of its last phase.

    Raises:
        CheckpointError: there is none.
    """
    if not path.is_dir() or (path / "best.pt").exists():
        return checkpoint_path(str(path))
    results = read_results(path)
    last = results.get("sft") or results.get("pretrain")
    if last is None:
        raise CheckpointError(
            f"{path} has no {RESULT} that names a finished phase",
            "name a run folder, as runs/default, whose training has come to its end",
        )
    return checkpoint_path(str(path / last.checkpoint))


def opened(checkpoint: Path) -> Subject:
    """Return a checkpoint with the settings that gave it, for this machine's device."""
    cfg = settings_behind(checkpoint)
    device = resolve_device("auto")
    preflight(device, cfg)
    return Subject(cfg, read_checkpoint(checkpoint), device)


def settings_behind(checkpoint: Path) -> RunCfg:
    """Return the settings of the phase that a checkpoint belongs to, from its run's results.

    Raises:
        CheckpointError: they are missing or of another version of the project.
    """
    folder, phase = checkpoint.parent.parent, checkpoint.parent.name
    result = {str(name): result for name, result in read_results(folder).items()}.get(phase)
    if result is None:
        raise CheckpointError(
            f"{folder / RESULT} has no settings of a phase {phase}, which {checkpoint} needs",
            "give a checkpoint that lies in its run folder, as runs/<name>/<phase>/best.pt, of a finished phase",
        )
    kept = {key: result.settings.get(key) for key in ("model", "data", "train")}
    own = {"name": folder.name, "phase": phase, "dir": str(folder)}
    try:
        return RunCfg.model_validate_json(json.dumps(own | kept))  # JSON's lists are the settings' tuples
    except ValidationError as error:
        what = f"{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}"
        raise CheckpointError(
            f"{folder / RESULT}: the settings of {phase} cannot be used ({what})",
            "train again with this version of the project",
        ) from None


def next_batch(subject: Subject, sequences: int) -> tuple[Batch, int]:
    """Return the sequences that the step after the checkpoint would learn from, and their number of targets."""
    cfg = subject.cfg
    batch = SOURCES[cfg.phase](cfg, "train").draw(subject.saved["step"] * cfg.train.effective_batch, sequences)
    require_ids(batch, cfg.model.V)
    targets = int((batch.y != IGNORE).sum())
    if not targets:
        raise DataError(f"the {sequences} sequences have nothing to learn", "give a larger --sequences")
    return batch, targets


def computed(precision: Precision, subject: Subject, batch: Batch, targets: int) -> Pass:
    """Compute the gradient of a step as training does, in microbatches, without changing anything."""
    model, cfg = weights_in(precision.model, subject), precision.applied(subject.cfg.train)
    device = subject.device
    amp = partial(torch.autocast, device.type, dtype=DTYPES[cfg.amp_dtype], enabled=cfg.amp)
    scale = loss_scale(targets, MPS, cfg)
    loss = torch.zeros((), device=device)
    with largest_activation(model) as largest:
        for x, y in zip(batch.x.split(cfg.B), batch.y.split(cfg.B), strict=True):
            with amp():
                share = model.loss(x.to(device), y.to(device), targets)
            (share * scale).backward()
            loss += share.detach()
    unscale_gradients(model, scale)
    return Pass(scale, loss.item(), gradient_by_part(model), max(value.item() for value in largest))


def weights_in(kind: type[GPT], subject: Subject) -> GPT:
    """Return the weights in a GPT of a kind, ready to learn, without dropout; recomputation saves memory.

    Raises:
        CheckpointError: the weights are of another model.
    """
    model = kind(subject.cfg.model.model_copy(update={"dropout": 0.0}), activation_checkpointing=True)
    try:
        model.load_state_dict(subject.saved["model_state"])
    except RuntimeError:
        raise CheckpointError(
            f"the checkpoint does not fit the model settings in {RESULT}", "give the run that it belongs to"
        ) from None
    return model.to(subject.device).train()


@contextmanager
def largest_activation(model: GPT) -> Iterator[list[Tensor]]:
    """Collect, for each call of a projection, the largest absolute number that goes in or comes out.

    What goes in is included for the sake of the gated product and the attended values, which no module returns.
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


def gradient_by_part(model: GPT) -> dict[str, Tensor]:
    """Return the gradient on the CPU, one vector each for the embedding, every block and the last norm."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        words = name.split(".")
        part = ".".join(words[:2]) if words[0] == "blocks" else words[0]
        parts.setdefault(part, []).append(parameter.grad.flatten().cpu())
    return {part: torch.cat(vectors) for part, vectors in parts.items()}


def compared(precision: Precision, made: Pass, reference: Pass) -> Row:
    """Hold what a precision computed against fp32."""
    sums = {part: products(made.gradient[part], exact) for part, exact in reference.gradient.items()}
    sums[TOTAL] = [sum(column) for column in zip(*sums.values(), strict=True)]
    return Row(
        name=precision.name,
        scale=made.scale,
        loss=made.loss,
        loss_difference=made.loss - reference.loss,
        largest_activation=made.largest,
        dtype_max=torch.finfo(precision.dtype).max,
        parts={part: part_of(*values) for part, values in sums.items()},
    )


def products(ours: Tensor, exact: Tensor) -> list[float]:
    """Return the sums that a comparison is made of; those of parts add up to those of the whole."""
    a, b = ours.double(), exact.double()  # squares of small gradients are below fp32's range
    return [
        float((a * a).sum()),
        float((b * b).sum()),
        float((a * b).sum()),
        float((a - b).square().sum()),
        float(((a == 0) & (b != 0)).sum()),
        float((b != 0).sum()),
    ]


def part_of(aa: float, bb: float, ab: float, difference: float, flushed: float, entries: float) -> Part:
    """Return the comparison that sums of products stand for."""
    lengths = math.sqrt(aa * bb)
    return Part(
        cosine=ab / lengths if lengths else float(aa == bb),
        error=math.sqrt(difference / bb) if bb else float(difference > 0),
        flushed=flushed / entries if entries else 0.0,
    )


def with_verdicts(rows: Sequence[Row], targets: int) -> Iterator[Row]:
    """Yield the rows, each with its verdict; what is advised is what did well here."""
    good = {precision.setting for precision, row in zip(PRECISIONS, rows, strict=True) if keeps(precision, row)}
    advised = [f"precision={setting}" for setting in ("bf16", "fp16_scaled") if setting in good]
    advice = " or ".join(advised) or "precision=off"
    for precision, row in zip(PRECISIONS, rows, strict=True):
        words = f"{row.name}: {verdict(precision, row, targets, advice)}"
        yield replace(row, verdict=words)


def keeps(precision: Precision, row: Row) -> bool:
    """Return whether the gradient is that of fp32 but for rounding; what is not finite never is."""
    return row.parts[TOTAL].error <= ROUNDINGS * torch.finfo(precision.dtype).eps and math.isfinite(row.loss)


def verdict(precision: Precision, row: Row, targets: int, advice: str) -> str:
    """Say what a row means for who has to choose a precision."""
    total = row.parts[TOTAL]
    if precision is FP32:
        return "what the others are held against" + (
            ", repeated exactly" if not total.error else f"; repeated with an error of {total.error:.1e}"
        )
    way_out = f"use {advice}" if precision.setting else "which is why training computes the head in fp32"
    if not math.isfinite(total.error + row.loss + row.largest_activation):
        return f"overflows, loss, gradient or activations are not finite; {way_out}"
    if not keeps(precision, row):
        return f"{percent(min(1.0, total.error))} of the gradient is lost at {targets} targets; {way_out}"
    reach = row.largest_activation / row.dtype_max
    if reach > NARROW:
        return f"keeps the gradient, but activations reach {percent(reach)} of its range; use precision=bf16"
    return f"keeps the gradient: {percent(total.error)} of rounding at {targets} targets"


def percent(share: float) -> str:
    """Return a share for a person, with two digits that count."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def as_text(result: Numerics) -> str:
    """Return the comparison as plain tables and sentences."""
    head = (
        f"{result.checkpoint}, step {result.step}: {result.sequences} sequences, {result.tokens} tokens, "
        f"{result.targets} targets\n{result.device}, torch {result.torch}: {result.how}"
    )
    tables = [
        part_table("relative error of the gradient", result.rows, "error", "{:.2e}"),
        part_table("cosine with the gradient of fp32", result.rows, "cosine", "{:.6f}"),
        part_table("share of the gradient flushed to zero", result.rows, "flushed", "{:.2%}"),
    ]
    return "\n\n".join([head, summary_table(result.rows), *tables, "\n".join(row.verdict for row in result.rows)])


def summary_table(rows: Sequence[Row]) -> str:
    """Return a line a precision: loss and range."""
    titles = ["precision", "scale", "loss", "difference", "largest activation", "dtype's max"]
    lines = [
        [
            row.name,
            f"{row.scale:.0f}",
            f"{row.loss:.6f}",
            f"{row.loss_difference:+.1e}",
            f"{row.largest_activation:.4g}",
            f"{row.dtype_max:.4g}",
        ]
        for row in rows
    ]
    return aligned([titles, *lines])


def part_table(title: str, rows: Sequence[Row], fact: str, form: str) -> str:
    """Return a line for each part of the network, a column for each precision."""
    lines = [[part, *(form.format(getattr(row.parts[part], fact)) for row in rows)] for part in rows[0].parts]
    return aligned([[title, *(row.name for row in rows)], *lines])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines in columns, words to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if n else cell.ljust(width) for n, (cell, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    )


def require_new(path: Path) -> None:
    """Refuse to write over a file, before time is spent.

    Raises:
        ConfigError: the file is there, or its folder is not.
    """
    if path.exists():
        raise ConfigError(f"{path} is there already", "name a new file")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}", "make it, or name another file")


def write_json(result: Numerics, path: Path) -> None:
    """Write the comparison to a new file; what is not finite is null."""
    text = json.dumps(_plain(asdict(result)), indent=2, allow_nan=False) + "\n"
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def _plain(value: Any) -> Any:
    """Give JSON what it can say."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
