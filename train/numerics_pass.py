"""Computes the gradient of one step in each of the precisions, as training does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niels_gpt.data.batches import Batch
from niels_gpt.loss import next_token_loss
from niels_gpt.model.gpt import GPT
from train.amp import DTYPES, loss_scale
from train.fit import require_same_model
from train.numerics_batch import Subject
from train.optim import unscale_gradients
from train.result import RESULT
from train.schema import TrainCfgSchema

MPS = torch.device("mps")  # where precision takes effect; on the CPU it is emulated with that device's settings


class LowHead(GPT):
    """The negative study: a head that computes in the precision of the rest."""

    def loss(self, ids: Tensor, targets: Tensor, denominator: float) -> Tensor:
        """Return the loss of logits that are in low precision under autocast."""
        return next_token_loss(F.linear(self._hidden(ids), self.head_weight), targets, denominator)


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
class Pass:
    """What a precision computed: mean loss a target, gradient by part, largest absolute activation."""

    scale: float
    loss: float
    gradient: dict[str, Tensor]
    largest: float


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
    require_same_model(subject.found, subject.cfg.model, str(Path(subject.cfg.dir) / RESULT))
    model = kind(subject.cfg.model.model_copy(update={"dropout": 0.0}), activation_checkpointing=True)
    model.load_state_dict(subject.found.saved["model_state"])
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
