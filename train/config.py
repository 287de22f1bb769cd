"""The gate from Hydra into the code: the schema of a run, and load_plan, which turns settings into runs."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, ValidationError

from niels_gpt.config import Cfg, DataCfg, ModelCfg, impossible_path
from niels_gpt.errors import ConfigError
from train.problems import Settings, as_tuples, explained

PhaseName = Literal["pretrain", "sft"]
BatchChoice = Literal["fixed", "iso", "auto"]
LARGEST_B = 65536
HELP = "python scripts/train.py --help lists all settings"


class TrainCfgSchema(Cfg):
    """How one phase learns. A step is one optimizer update on B x accum_steps sequences."""

    seed: int = Field(1337, ge=0, le=2**31 - 1, description="names every random draw of the run")
    B: int = Field(4, ge=1, le=LARGEST_B, description="sequences in a microbatch")
    accum_steps: int = Field(2, ge=1, le=65536, description="microbatches in a step")
    total_steps: int = Field(600, ge=1, le=10**9, description="steps in the phase")
    eval_every: int = Field(200, ge=1, le=10**9, description="steps between evaluations; the last step has one")
    eval_sequences: int = Field(128, ge=1, le=10**7, description="sequences in an evaluation, whatever B")
    log_every: int = Field(20, ge=1, le=10**9, description="steps between lines of progress")
    ckpt_every: int = Field(200, ge=1, le=10**9, description="steps between checkpoints; the last step has one")
    max_minutes: float | None = Field(
        None, gt=0, le=1e7, description="minutes that a phase may take, all resumes together; then it is saved"
    )
    keep_last: int = Field(2, ge=1, le=10**6, description="checkpoints kept, besides the best")
    optim: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for the matrices of the blocks, AdamW for the rest"
    )
    base_lr: float = Field(1e-3, gt=0.0, le=10.0, description="learning rate after warm-up")
    schedule: Literal["cosine", "linear"] = Field("cosine", description="how the rate falls after warm-up")
    min_lr: float = Field(0.0, ge=0.0, le=10.0, description="learning rate that the schedule ends at")
    warmup_steps: int | None = Field(
        None, ge=0, le=10**9, description="steps of linear warm-up; null: a tenth of total_steps"
    )
    weight_decay: float = Field(0.1, ge=0.0, le=10.0, description="decoupled decay, on matrices only")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's averaging, each in [0, 1)")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Muon's averaging")
    grad_clip: float = Field(1.0, gt=0.0, le=1e9, description="largest gradient norm of a step")
    amp: bool = Field(True, description="autocast; takes effect on mps only")
    amp_dtype: Literal["fp16", "bf16"] = Field("fp16", description="autocast's low precision")
    loss_scaling: bool = Field(
        False, description="fp16 on mps: a constant power of two times the loss, divided out again"
    )
    activation_checkpointing: bool = Field(False, description="recompute blocks: less memory, more time")
    compile: bool = Field(
        False, description="torch.compile: less time after a first step of up to a minute; CPU only"
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
        """Return these settings with steps of so many sequences, in microbatches of B."""
        return self.model_copy(update={"B": B, "accum_steps": effective_batch // B})


class RunCfg(Cfg):
    """One phase, ready to be carried out."""

    name: str
    phase: PhaseName
    dir: str
    device: Literal["auto", "cpu", "mps"] = "auto"
    batch: BatchChoice = "fixed"
    memory_budget_gb: float | None = None
    resume: str = "auto"
    init_from: str | None = None
    model: ModelCfg
    data: DataCfg
    train: TrainCfgSchema

    @property
    def out(self) -> Path:
        """The phase's folder within the run folder."""
        return Path(self.dir) / self.phase

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer that all phases of the run share."""
        return Path(self.dir) / "tokenizer.json"


class SftCfg(Cfg):
    """The second phase of a pipeline: what is not set here follows the first phase."""

    model: ModelCfg
    data: DataCfg
    train: TrainCfgSchema


class PlanCfg(Cfg):
    """Everything one may choose: the composed config."""

    name: str = Field("default", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$", description="the run's name")
    dir: str = Field("runs/${name}", min_length=1, max_length=4096, description="the run folder")
    phase: Literal["pretrain", "sft", "pipeline"] = Field("pipeline", description="set by the group phase")
    device: Literal["auto", "cpu", "mps"] = Field("auto", description="auto takes mps where there is one")
    batch: BatchChoice = Field("fixed", description="how B and accum_steps are chosen; set by the group batch")
    global_B: int | None = Field(
        None, ge=1, le=2**32, description="sequences in a step, B x accum_steps, for batch=iso and batch=auto"
    )
    memory_budget_gb: float | None = Field(
        None, gt=0, le=1e6, description="GiB that a run may take: batch=auto and a sweep's report keep to it"
    )
    objective: tuple[Literal["loss", "memory"], ...] = Field(
        ("loss",), min_length=1, max_length=2, description="what a sweeper minimises"
    )
    resume: str = Field(
        "auto",
        min_length=1,
        description="auto: go on if there is a run; never: refuse to; or a checkpoint's path",
    )
    init_from: str | None = Field(None, description="checkpoint to take the weights from at step 0")
    model: ModelCfg
    data: DataCfg
    train: TrainCfgSchema
    sft: SftCfg

    def rules(self) -> Iterator[str]:
        """Each phase has the kind of data it learns from, and both have the same network."""
        yield from impossible_path("dir", self.dir)
        if self.phase != "pretrain" and all(source.kind == "text" for source in self.sft.data.mixture()):
            yield (
                "sft.data: text files have no dialogues; use phase=pretrain, or give some with "
                "+data@sft.data=jsonl 'sft.data.files=[chats.jsonl]'"
            )
        if self.phase != "pretrain" and "text" in self._validated_on(self.sft.data):
            yield f"sft.data.val_source={self.sft.data.val_source} is text, which has no dialogues"
        if self.device == "mps" and sys.platform != "darwin":
            yield "device=mps was asked for, but this machine has none; use device=cpu or device=auto"
        same = self.sft.model.model_copy(update={"dropout": self.model.dropout})
        if self.phase == "pipeline" and same != self.model:
            yield "sft.model: only dropout may differ from model, since the weights are handed on"
        if self.phase == "pipeline" and self.resume not in ("auto", "never"):
            yield f"resume={self.resume} belongs to one phase; add phase=pretrain or phase=sft"
        yield from self._batch_rules()

    def _batch_rules(self) -> Iterator[str]:
        """A step has the global_B sequences that were asked for, in every phase that is carried out."""
        if self.batch == "iso" and self.global_B is None:
            yield "batch=iso needs global_B=N, the sequences in a step, as in batch=iso global_B=32 train.B=8"
        if self.batch == "auto" or self.global_B is None:
            return
        for section, train in self._trained().items():
            if train.effective_batch != self.global_B:
                yield self._other_batch(self.global_B, section, train)

    def _trained(self) -> dict[str, TrainCfgSchema]:
        """Return the sections that say how the steps of this plan are split, each once."""
        first, second = self.train, self.sft.train
        follows = (second.B, second.accum_steps) == (first.B, first.accum_steps)
        counts = self.phase != "sft" or follows or self.batch == "iso"  # with iso sft.train follows B alone
        sections = {"train": first} if counts else {}
        return sections if follows or self.phase == "pretrain" else sections | {"sft.train": second}

    def _other_batch(self, asked: int, section: str, train: TrainCfgSchema) -> str:
        """Return why a section does not give the global batch that was asked for."""
        accum_steps, iso = f"{section}.accum_steps", self.batch == "iso"
        if asked % train.B:
            near = " or ".join(f"{section}.B={B}" for B in divisors_near(train.B, asked))
            also = "" if iso else f", and add batch=iso, with which {accum_steps} follows"
            return f"{section}.B={train.B} does not divide global_B={asked}; use {near}{also}"
        is_now = f"{section}.B={train.B} x {accum_steps}={train.accum_steps} is {train.effective_batch}"
        way_out = f"leave out {accum_steps}, which" if iso else f"add batch=iso, with which {accum_steps}"
        return f"global_B={asked} was asked for, but {is_now}; {way_out} follows from {section}.B"

    @staticmethod
    def _validated_on(data: DataCfg) -> set[str]:
        """Return the kinds of source that validation is narrowed down to, none where it is not."""
        return {source.kind for source in data.mixture() if data.val_source == source.called}

    def plan(self) -> list[RunCfg]:
        """Return the phases to carry out, in order."""
        first = self._run("pretrain", self.model, self.data, self.train)
        second = self._run("sft", self.sft.model, self.sft.data, self.sft.train)
        if self.phase == "pipeline":
            return [first, second.model_copy(update={"init_from": None})]  # from the best of the first
        return [first if self.phase == "pretrain" else second]

    def _run(self, phase: PhaseName, model: ModelCfg, data: DataCfg, train: TrainCfgSchema) -> RunCfg:
        return RunCfg(
            name=self.name,
            phase=phase,
            dir=self.dir,
            device=self.device,
            batch=self.batch,
            memory_budget_gb=self.memory_budget_gb,
            resume=self.resume,
            init_from=self.init_from,
            model=model,
            data=data,
            train=train.split(self.global_B, 1) if self.batch == "auto" and self.global_B else train,
        )


def divisors_near(B: int, whole: int) -> list[int]:
    """Return the divisors of `whole` next to B, the one below and the one above, where there are such."""
    below = next((n for n in range(min(B, whole), 0, -1) if whole % n == 0), None)
    above = next((n for n in range(B, min(whole, LARGEST_B) + 1) if whole % n == 0), None)
    return [n for n in (below, above) if n is not None]


def load_plan(cfg: DictConfig) -> list[RunCfg]:
    """Return the runs that a composed config asks for.

    Raises:
        ConfigError: one line per bad setting, in Hydra's dotted form.
    """
    tree = OmegaConf.create({key: cfg._get_node(key) for key in cfg if key != "hydra"})
    settings: Settings = OmegaConf.to_container(tree, resolve=True)  # type: ignore[assignment]
    if "hydra" in cfg:  # a whole config, before Hydra has made its folder
        settings["dir"] = cfg.hydra.run.dir
    elif HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir"):
        settings["dir"] = os.path.relpath(HydraConfig.get().runtime.output_dir)  # in a sweep, the job's own folder
    return plan_from_settings(settings)


def plan_from_settings(settings: Settings) -> list[RunCfg]:
    """Return the runs that plain settings, in the shape of PlanCfg, ask for.

    Raises:
        ConfigError: one line per bad setting, in Hydra's dotted form.
    """
    try:
        return PlanCfg.model_validate(as_tuples(settings)).plan()
    except ValidationError as error:
        raise ConfigError(explained(error, settings, PlanCfg), HELP) from None
