"""All settings of a run, the rules between them, and the phases to run."""

import sys
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from niels_gpt.config import Cfg, DataCfg, ModelCfg
from train.config.schema import (
    LARGEST_B,
    MOST_MICROBATCHES,
    BatchChoice,
    PhaseName,
    RunCfg,
    TrainCfgSchema,
    list_microbatch_sizes,
)


class SftCfg(Cfg):
    """The second phase of a pipeline; settings not given here follow the first phase."""

    model: ModelCfg
    data: DataCfg
    train: TrainCfgSchema


class PlanCfg(Cfg):
    """The composed config, with every setting of a run."""

    name: str = Field("default", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$", description="the run's name")
    dir: str = Field("runs/${name}", min_length=1, max_length=4096, description="the run folder")
    phase: Literal["pretrain", "sft", "pipeline"] = Field("pipeline", description="pretrain, sft or pipeline")
    device: Literal["auto", "cpu", "mps"] = Field("auto", description="auto: mps if available, else cpu")
    batch: BatchChoice = Field("fixed", description="how B and accum_steps are chosen: fixed, iso or auto")
    global_B: int | None = Field(
        None, ge=1, le=2**32, description="sequences per step (B x accum_steps) for batch=iso and batch=auto"
    )
    memory_budget_gb: float | None = Field(
        None, gt=0, le=1e6, description="memory limit in GiB for batch=auto and a sweep's report"
    )
    objective: tuple[Literal["loss", "memory"], ...] = Field(
        ("loss",), min_length=1, max_length=2, description="metrics a sweeper minimises; loss is in bits per byte"
    )
    resume: str = Field(
        "auto",
        min_length=1,
        description="auto: resume an existing run; never: refuse to; PATH: resume from it",
    )
    init_from: str | None = Field(None, min_length=1, description="start at step 0 with this checkpoint's weights")
    model: ModelCfg
    data: DataCfg
    train: TrainCfgSchema
    sft: SftCfg

    def rules(self) -> Iterator[str]:
        """Each phase has data it can learn from, and both have the same network."""
        if "\0" in self.dir:
            yield "dir contains a NUL character, which no path may have"
        if not (self.data.cache_dir and self.sft.data.cache_dir):
            section = "sft.data" if self.data.cache_dir else "data"
            yield f"{section}.cache_dir is empty; leave it out, or name a folder"
        if self.phase != "pretrain" and all(source.kind == "text" for source in self.sft.data.mixture()):
            yield (
                "sft.data: text files have no dialogues; use phase=pretrain, or give some with "
                "+data@sft.data=jsonl 'sft.data.files=[chats.jsonl]'"
            )
        val = self.sft.data.val_source
        if self.phase != "pretrain" and ("text", val) in ((s.kind, s.label) for s in self.sft.data.mixture()):
            yield f"sft.data.val_source={val} is text, which has no dialogues"
        if self.device == "mps" and sys.platform != "darwin":
            yield "device=mps was asked for, but this machine has none; use device=cpu or device=auto"
        same = self.sft.model.model_copy(update={"dropout": self.model.dropout})
        if self.phase == "pipeline" and same != self.model:
            yield "sft.model: only dropout may differ from model, because SFT starts from its weights"
        if self.phase == "pipeline" and self.resume not in ("auto", "never"):
            yield f"resume={self.resume} applies to a single phase; add phase=pretrain or phase=sft"
        yield from self._batch_rules()

    def _batch_rules(self) -> Iterator[str]:
        """A step has global_B sequences, if that is set, in every phase to run."""
        if self.batch == "iso" and self.global_B is None:
            yield "batch=iso needs global_B=N (sequences per step), for example batch=iso global_B=32 train.B=8"
        if self.global_B is None:
            return
        possible = list_microbatch_sizes(self.global_B)
        if self.batch != "fixed" and not possible:
            yield (
                f"global_B={self.global_B} has no divisor with which B and accum_steps are {LARGEST_B} at most; "
                "take a power of two"
            )
            return
        for section, train in self._list_train_sections().items():
            if self.batch == "iso" and train.B not in possible:
                below, above = [B for B in possible if B < train.B], [B for B in possible if B > train.B]
                use = " or ".join(f"{section}.B={B}" for B in [*below[-1:], *above[:1]])
                yield (
                    f"{section}.B={train.B} does not split global_B={self.global_B} evenly into "
                    f"{MOST_MICROBATCHES} microbatches or fewer; use {use}"
                )
            if self.batch == "fixed" and train.effective_batch != self.global_B:
                product = f"{section}.B={train.B} x {section}.accum_steps={train.accum_steps}"
                yield f"{product} is {train.effective_batch}, not global_B={self.global_B}; add batch=iso"

    def _list_train_sections(self) -> dict[str, TrainCfgSchema]:
        """Return the sections of the phases to run; in a pipeline, sft.train only if its split differs."""
        if self.phase != "pipeline":
            return {"train": self.train} if self.phase == "pretrain" else {"sft.train": self.sft.train}
        same = (self.train.B, self.train.accum_steps) == (self.sft.train.B, self.sft.train.accum_steps)
        return {"train": self.train} | ({} if same else {"sft.train": self.sft.train})

    def plan(self) -> list[RunCfg]:
        """Return the phases to run, in order."""
        first = self._run("pretrain", self.model, self.data, self.train)
        second = self._run("sft", self.sft.model, self.sft.data, self.sft.train)
        if self.phase == "pipeline":
            return [first, second.model_copy(update={"init_from": None})]  # from the best checkpoint of the first
        return [first if self.phase == "pretrain" else second]

    def _run(self, phase: PhaseName, model: ModelCfg, data: DataCfg, train: TrainCfgSchema) -> RunCfg:
        if self.batch == "iso" and self.global_B:
            train = train.split(self.global_B, train.B)
        if self.batch == "auto" and self.global_B:  # the smallest until one is measured
            train = train.split(self.global_B, list_microbatch_sizes(self.global_B)[0])
        shared = self.model_dump(
            include={"name", "dir", "device", "batch", "memory_budget_gb", "resume", "init_from"}
        )
        return RunCfg(phase=phase, model=model, data=data, train=train, **shared)
