"""Settings of one phase, with their defaults and limits."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field

from niels_gpt.config import Cfg, DataCfg, ModelCfg, Several

PhaseName = Literal["pretrain", "sft"]
BatchChoice = Literal["fixed", "iso", "auto"]
LoggerName = Literal["trackio", "tensorboard", "wandb", "mlflow"]  # each an extra of this project
MOST = 65536  # sequences in a microbatch, and microbatches in a step


def list_microbatch_sizes(effective_batch: int) -> list[int]:
    """Return every B that splits a step of `effective_batch` sequences into microbatches, ascending."""
    fewest = -(-effective_batch // MOST)
    return [B for B in range(fewest, min(effective_batch, MOST) + 1) if effective_batch % B == 0]


def require_installed(names: tuple[LoggerName, ...]) -> tuple[LoggerName, ...]:
    """Return the names; ValueError if one has no package. A folder wandb/, as wandb makes, is none."""
    for name in names:
        if (spec := find_spec(name)) is None or spec.origin is None:
            raise ValueError(f"{name} is not installed; pip install 'niels_gpt[{name}]'")
    return names


Loggers = Annotated[Several[LoggerName], AfterValidator(require_installed)]


class TrainCfgSchema(Cfg):
    """Training settings of one phase. A step is one optimizer update on B x accum_steps sequences."""

    seed: int = Field(1337, ge=0, le=2**31 - 1, description="random seed for the whole run")
    B: int = Field(4, ge=1, le=MOST, description="sequences in a microbatch")
    accum_steps: int = Field(2, ge=1, le=MOST, description="microbatches per step; batch=iso computes it")
    total_steps: int = Field(400, ge=1, le=10**9, description="optimizer steps in the phase")
    eval_every: int = Field(200, ge=1, le=10**9, description="evaluate every this many steps, and at the last one")
    eval_sequences: int = Field(128, ge=1, le=10**7, description="sequences per evaluation, independent of B")
    log_every: int = Field(20, ge=1, le=10**9, description="log every this many steps")
    ckpt_every: int = Field(200, ge=1, le=10**9, description="save every this many steps, and at the last one")
    max_minutes: float | None = Field(
        None, gt=0, le=1e7, description="save and stop the phase after this many minutes, across resumes"
    )
    patience: int | None = Field(
        None, ge=1, le=10**9, description="stop after this many evaluations without a new best loss; null: never"
    )
    keep_last: int = Field(2, ge=1, le=10**6, description="checkpoints to keep besides the best")
    optim: Literal["adamw", "muon"] = Field(
        "muon", description="muon: Muon for the matrices of the blocks, AdamW for the rest"
    )
    base_lr: float = Field(
        0.014, gt=0.0, le=10.0, description="peak learning rate; the groups model, optim and phase set it"
    )
    schedule: Literal["cosine", "linear"] = Field("linear", description="shape of the decay after warm-up")
    min_lr: float = Field(0.0, ge=0.0, le=10.0, description="learning rate at the end of the schedule")
    warmup_steps: int | None = Field(
        None, ge=0, le=10**9, description="steps of linear warm-up; null: a tenth of total_steps"
    )
    weight_decay: float = Field(0.1, ge=0.0, le=10.0, description="decoupled weight decay, matrices only")
    betas: tuple[float, float] = Field((0.8, 0.98), description="AdamW betas, each in [0, 1)")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Muon momentum")
    grad_clip: float | None = Field(1.0, gt=0.0, le=1e9, description="clip the gradient norm to this; null: never")
    ema: float | None = Field(
        None, gt=0.0, lt=1.0, description="decay of a moving average of the weights in checkpoints; null: none"
    )
    amp: bool = Field(True, description="use autocast; mps only")
    amp_dtype: Literal["fp16", "bf16"] = Field("fp16", description="dtype of autocast")
    loss_scaling: bool = Field(
        False, description="fp16 on mps: scale the loss by a power of two, then unscale the gradients"
    )
    activation_checkpointing: bool = Field(
        False, description="recompute activations for the backward pass: less memory, more time"
    )
    compile: bool = Field(
        False, description="torch.compile: faster steps, but the first takes up to a minute; CPU only"
    )

    def rules(self) -> Iterator[str]:
        """Warm-up ends within the run, and the learning rate goes down."""
        if self.warmup_steps is not None and self.warmup_steps > self.total_steps:
            yield f"warmup_steps={self.warmup_steps} is more than total_steps={self.total_steps}"
        if self.min_lr > self.base_lr:
            yield f"min_lr={self.min_lr} is more than base_lr={self.base_lr}"
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"betas={list(self.betas)} must lie in [0, 1)"

    @property
    def warmup(self) -> int:
        """Steps of warm-up."""
        return self.total_steps // 10 if self.warmup_steps is None else self.warmup_steps

    @property
    def effective_batch(self) -> int:
        """Sequences in a step."""
        return self.B * self.accum_steps

    def split(self, effective_batch: int, B: int) -> Self:
        """Return these settings with steps of `effective_batch` sequences in microbatches of B."""
        return self.model_copy(update={"B": B, "accum_steps": effective_batch // B})


class RunCfg(Cfg):
    """The checked settings of one phase."""

    name: str
    phase: PhaseName
    dir: str
    device: Literal["auto", "cpu", "mps"] = "auto"
    batch: BatchChoice = "fixed"
    memory_budget_gb: float | None = None
    resume: str = "auto"
    init_from: str | None = None
    logger: Loggers = ()
    model: ModelCfg
    data: DataCfg
    train: TrainCfgSchema

    @property
    def isolate(self) -> bool:
        """Whether attention stays within a dialogue (SFT) or a document (pretraining)."""
        return self.phase == "sft" if self.data.isolate is None else self.data.isolate

    @property
    def out(self) -> Path:
        """The phase's folder within the run folder."""
        return Path(self.dir) / self.phase

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer shared by all phases of the run."""
        return Path(self.dir) / "tokenizer.json"
