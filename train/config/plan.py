"""All settings of a run, the rules between them, and the plan: the phases to run."""

import sys
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from niels_gpt.config import Cfg, DataCfg, ModelCfg
from niels_gpt.errors import DataError
from train.config.model_shape import count_entries
from train.config.schema import (
    MOST,
    BatchChoice,
    Loggers,
    PhaseName,
    RunCfg,
    TrainCfgSchema,
    list_microbatch_sizes,
)


class ModelSettings(ModelCfg):
    """The shape of a GPT as it is asked for: without V, it has that of the tokenizer."""

    V: int | None = Field(  # type: ignore[assignment]  # RunCfg has a number
        ge=256, le=1 << 20, description="vocabulary size; null: as data.tokenizer has, if it is not bpe"
    )


class SftCfg(Cfg):
    """The second phase of a pipeline; settings not given here follow the first phase."""

    model: ModelSettings
    data: DataCfg
    train: TrainCfgSchema


class ComposedCfg(Cfg):
    """The composed config, with every setting of a run."""

    name: str = Field("default", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$", description="the run's name")
    dir: str = Field("runs/${name}", min_length=1, max_length=4096, description="the run folder")
    phase: Literal["pretrain", "sft", "pipeline"] = Field(
        "pipeline", description="pretraining, SFT, or both as a pipeline"
    )
    device: Literal["auto", "cpu", "mps"] = Field("auto", description="auto: mps if available, else cpu")
    batch: BatchChoice = Field("fixed", description="how B and accum_steps are chosen; see the group batch")
    global_B: int | None = Field(
        None, ge=1, le=MOST, description="sequences per step (B x accum_steps), for batch=iso and batch=auto"
    )
    memory_budget_gb: float | None = Field(
        None, gt=0, le=1e6, description="memory limit in GiB, for batch=auto and a sweep's report"
    )
    objective: tuple[Literal["loss", "memory"], ...] = Field(
        ("loss",), min_length=1, max_length=2, description="what a sweeper minimises; loss is in bits per byte"
    )
    resume: str = Field(
        "auto", min_length=1, description="auto: resume an existing run; never: refuse to; PATH: resume from it"
    )
    init_from: str | None = Field(None, min_length=1, description="start at step 0 with the weights at this path")
    logger: Loggers = Field((), description="programs to log to besides metrics.jsonl")
    model: ModelSettings
    data: DataCfg
    train: TrainCfgSchema
    sft: SftCfg

    def rules(self) -> Iterator[str]:
        """The device can exist, SFT has dialogues to learn from, and both phases have the same network."""
        if self.device == "mps" and sys.platform != "darwin":
            yield "device=mps is not available on this machine; use device=cpu or device=auto"
        data = self.sft.data
        held_out = [source for source in data.mixture() if data.val_source in ("", source.label)]
        if self.phase != "pretrain" and all(source.kind == "text" for source in held_out):
            yield (
                f"sft.data: no dialogues in {', '.join(source.label for source in held_out)}, only text; "
                "use phase=pretrain, or add dialogues with +data@sft.data=jsonl sft.data.files=chats.jsonl"
            )
        same = self.sft.model.model_copy(update={"dropout": self.model.dropout})
        if self.phase == "pipeline" and same != self.model:
            yield "sft.model: only dropout may differ from model, because SFT starts from its weights"
        if self.phase == "pipeline" and self.resume not in ("auto", "never"):
            yield f"resume={self.resume} applies to a single phase; add phase=pretrain or phase=sft"
        if self.phase == "pipeline" and self.sft.data.tokenizer != self.data.tokenizer:
            yield f"sft.data.tokenizer={self.sft.data.tokenizer} must be data.tokenizer, because phases share it"
        elif self.phase == "sft":
            yield from self._vocabulary_rules("sft.", self.sft)
        else:
            yield from self._vocabulary_rules("", self)
        yield from self._batch_rules()

    def _vocabulary_rules(self, path: str, phase: "ComposedCfg | SftCfg") -> Iterator[str]:
        """V is the tokenizer's."""
        V, tokenizer = phase.model.V, phase.data.tokenizer
        try:
            entries = count_entries(tokenizer)
        except DataError as error:
            yield f"{path}data.tokenizer={error}; {error.hint}"
            return
        if V is None and entries is None:
            yield f"{path}model.V=null: data.tokenizer=bpe needs a number; use one, such as {path}model.V=4096"
        elif V is not None and entries not in (V, None):
            yield f"{path}model.V={V}, but data.tokenizer={tokenizer} has {entries}; use {path}model.V=null"

    def _batch_rules(self) -> Iterator[str]:
        """A step has global_B sequences, if that is set, in every phase to run."""
        if self.batch == "iso" and self.global_B is None:
            yield "batch=iso needs global_B=N (sequences per step), for example batch=iso global_B=32 train.B=8"
        if self.global_B is None:
            return
        sections = {"train": self.train, "sft.train": self.sft.train}
        if self.phase != "pipeline":
            del sections["sft.train" if self.phase == "pretrain" else "train"]
        for section, train in sections.items():
            if self.batch == "iso" and self.global_B % train.B:
                nearest = min(list_microbatch_sizes(self.global_B), key=lambda B: abs(B - train.B))
                yield f"{section}.B={train.B} does not divide global_B={self.global_B}; use B={nearest}"
            if self.batch == "fixed" and train.effective_batch != self.global_B:
                product = f"{section}.B={train.B} x accum_steps={train.accum_steps}"
                yield f"{product} is {train.effective_batch}, not global_B={self.global_B}; add batch=iso"

    def plan(self) -> list[RunCfg]:
        """Return the phases to run, in order."""
        first, second = self._make_run("pretrain", self), self._make_run("sft", self.sft)
        if self.phase == "pipeline":
            return [first, second.model_copy(update={"init_from": None})]  # from the best checkpoint of the first
        return [first if self.phase == "pretrain" else second]

    def _make_run(self, phase: PhaseName, settings: "ComposedCfg | SftCfg") -> RunCfg:
        train = settings.train
        if self.batch != "fixed" and self.global_B:
            train = train.split(self.global_B, train.B if self.batch == "iso" else 1)  # 1 until one is measured
        shared = self.model_dump(
            include={"name", "dir", "device", "batch", "memory_budget_gb", "resume", "init_from", "logger"}
        )
        model = settings.model.model_dump()
        model["V"] = model["V"] or count_entries(settings.data.tokenizer)
        return RunCfg(phase=phase, model=ModelCfg(**model), data=settings.data, train=train, **shared)
