"""PlanCfg: all settings of a run, and the phases that follow from them."""

import sys
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from niels_gpt.config import Cfg, DataCfg, ModelCfg
from train.config.schema import LARGEST_B, BatchChoice, PhaseName, RunCfg, TrainCfgSchema, possible_B


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
        ("loss",), min_length=1, max_length=2, description="what a sweeper minimises; loss in bits per byte"
    )
    resume: str = Field(
        "auto",
        min_length=1,
        description="auto: go on if there is a run; never: refuse to; or a checkpoint's path",
    )
    init_from: str | None = Field(None, min_length=1, description="checkpoint to take the weights from at step 0")
    model: ModelCfg
    data: DataCfg
    train: TrainCfgSchema
    sft: SftCfg

    def rules(self) -> Iterator[str]:
        """Each phase has the kind of data it learns from, and both have the same network."""
        if not (self.data.cache_dir and self.sft.data.cache_dir):  # which follows the first
            section = "sft.data" if self.data.cache_dir else "data"
            yield f"{section}.cache_dir is empty; leave it out, or name a folder"
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
        if self.global_B is None:
            return
        possible = possible_B(self.global_B)
        if self.batch != "fixed" and not possible:
            yield (
                f"global_B={self.global_B} has no divisor with which B and accum_steps are {LARGEST_B} at most; "
                "take a power of two"
            )
            return
        for section, train in self._trained().items():
            if self.batch == "iso" and train.B not in possible:
                near = [max((B for B in possible if B < train.B), default=None)]
                near += [min((B for B in possible if B > train.B), default=None)]
                use = " or ".join(f"{section}.B={B}" for B in near if B)
                fault = (
                    "does not divide" if self.global_B % train.B else f"gives over {LARGEST_B} microbatches for"
                )
                yield f"{section}.B={train.B} {fault} global_B={self.global_B}; use {use}"
            if self.batch == "fixed" and train.effective_batch != self.global_B:
                product = f"{section}.B={train.B} x {section}.accum_steps={train.accum_steps}"
                yield f"{product} is {train.effective_batch}, not global_B={self.global_B}; add batch=iso"

    def _trained(self) -> dict[str, TrainCfgSchema]:
        """Return the sections of the phases to carry out; sft.train counts where it differs from train."""
        first, second = {"train": self.train}, {"sft.train": self.sft.train}
        if self.phase == "pipeline":
            same = (self.train.B, self.train.accum_steps) == (self.sft.train.B, self.sft.train.accum_steps)
            return first if same else first | second
        return first if self.phase == "pretrain" else second

    @staticmethod
    def _validated_on(data: DataCfg) -> set[str]:
        """Return the kinds of source that validation is narrowed down to, none where it is not."""
        return {source.kind for source in data.mixture() if data.val_source == source.label}

    def plan(self) -> list[RunCfg]:
        """Return the phases to carry out, in order."""
        first = self._run("pretrain", self.model, self.data, self.train)
        second = self._run("sft", self.sft.model, self.sft.data, self.sft.train)
        if self.phase == "pipeline":
            return [first, second.model_copy(update={"init_from": None})]  # from the best of the first
        return [first if self.phase == "pretrain" else second]

    def _run(self, phase: PhaseName, model: ModelCfg, data: DataCfg, train: TrainCfgSchema) -> RunCfg:
        if self.batch == "iso" and self.global_B:
            train = train.split(self.global_B, train.B)
        if self.batch == "auto" and self.global_B:  # until one is chosen, the smallest
            train = train.split(self.global_B, possible_B(self.global_B)[0])
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
            train=train,
        )
