"""The contestants of a race: each takes optimizer steps and calls `lap` after each."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from niels_gpt.data.batches import TokenStream
from niels_gpt.data.token_files import TokenFiles
from train.artifacts.checkpointing import TrainState
from train.bench.shapes import Shape
from train.config.schema import TrainCfgSchema
from train.hardware.cpu import prepare_cpu
from train.loop.evaluate import Yardstick
from train.loop.logger import Report
from train.loop.model import make_model
from train.loop.optim import make_optimizer
from train.loop.steps import train_loop

Lap = Callable[[], None]
CPU = torch.device("cpu")
SEQUENCES = 512  # of random ids, to draw from


@dataclass(frozen=True)
class Contestant:
    """A way to take steps: `take(shape, settings, steps, lap)`. `settings` are TrainCfgSchema's.

    With `as_a_run` the process is prepared as for a run of this project.
    """

    says: str
    take: Callable[[Shape, dict[str, Any], int, Lap], None]
    settings: dict[str, Any] = field(default_factory=dict)
    as_a_run: bool = True


def the_loop(shape: Shape, settings: dict[str, Any], steps: int, lap: Lap) -> None:
    """Take steps as a user's run does: train_loop, its checks, its report, batches from a token file."""
    cfg = train_cfg(shape, settings, steps)
    state = built(shape, cfg)

    class Stopwatch(Report):
        def advance(self, step: int) -> None:
            lap()
            if step == steps:
                raise _Enough  # a stop would save first, and count as part of the step

    with tempfile.TemporaryDirectory() as folder, suppress(_Enough):
        report = Stopwatch(Path(folder), cfg.total_steps, state, Yardstick(1.0, 1.0))
        train_loop(state, cfg, source(shape), [], out=Path(folder), report=report)


class _Enough(Exception):
    """All steps of the race are taken."""


def bare(shape: Shape, settings: dict[str, Any], steps: int, lap: Lap) -> None:
    """Take steps with the same GPT, loss and optimizer, in the shortest loop there is."""
    cfg = train_cfg(shape, settings, steps)
    state = built(shape, cfg)
    targets = float(shape.B * shape.model.T)
    bare_loop(
        shape,
        state.model,
        state.optimizer,
        lambda x, y: state.model.loss(x, y, targets),
        cfg.grad_clip,
        steps,
        lap,
    )


def hugging_face(shape: Shape, settings: dict[str, Any], steps: int, lap: Lap) -> None:
    """Take steps with Hugging Face's Llama of the same shape, its own loss, fused AdamW, in a bare loop."""
    from transformers import LlamaConfig, LlamaForCausalLM

    m, cfg = shape.model, train_cfg(shape, settings, steps)
    config = LlamaConfig(  # its attention is the fused one by default
        vocab_size=m.V,
        hidden_size=m.C,
        intermediate_size=m.d_ff,
        num_hidden_layers=m.L,
        num_attention_heads=m.H,
        num_key_value_heads=m.H,
        max_position_embeddings=m.T,
        tie_word_embeddings=m.tie_embeddings,
        use_cache=False,
    )
    model: Any = LlamaForCausalLM(config).train()
    if cfg.activation_checkpointing:
        model.gradient_checkpointing_enable()
    if cfg.compile:
        model.compile(dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.base_lr, betas=cfg.betas, fused=True)
    bare_loop(
        shape,
        model,
        optimizer,
        lambda x, y: model(input_ids=x, shift_labels=y, labels=y).loss,
        cfg.grad_clip,
        steps,
        lap,
    )


def bare_loop(
    shape: Shape,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    grad_clip: float,
    steps: int,
    lap: Lap,
) -> None:
    """Draw, forward, backward, clip, update: nothing else."""
    drawn = source(shape)
    for step in range(steps):
        for part in range(shape.accum_steps):
            x, y = drawn.draw((step * shape.accum_steps + part) * shape.B, shape.B)
            (loss(x, y) / shape.accum_steps).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        lap()


def train_cfg(shape: Shape, settings: dict[str, Any], steps: int) -> TrainCfgSchema:
    """Return the settings of a phase that is long enough not to end within the race."""
    far = 10 * steps + 1000
    every: dict[str, Any] = {"eval_every": far, "ckpt_every": far, "total_steps": far, "warmup_steps": 1}
    every |= {"optim": "adamw", "base_lr": 1e-4, "schedule": "cosine", "betas": (0.9, 0.95)}
    return TrainCfgSchema(B=shape.B, accum_steps=shape.accum_steps, **every | settings)


def built(shape: Shape, cfg: TrainCfgSchema) -> TrainState:
    """Return the model and its optimizer, as a run builds them."""
    model = make_model(shape.model, cfg, CPU)
    return TrainState(model, make_optimizer(model, cfg))


def source(shape: Shape) -> TokenStream:
    """Return sequences of random ids, drawn as a run draws them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.model.V, (SEQUENCES * shape.model.T + 1,), generator=generator).to(torch.uint16)
    files = TokenFiles(ids, torch.empty(0, dtype=torch.uint8), torch.tensor([0, len(ids)]))
    return TokenStream(files, shape.model.T, seed=0)


def prepare_contestant(name: str, threads: int, *, frugal: bool = False) -> Contestant:
    """Return a contestant, this process being prepared for it; a frugal process keeps no freed memory."""
    contestant = CONTESTANTS[name]
    torch.set_num_threads(threads)
    if contestant.as_a_run and not frugal:
        prepare_cpu(CPU)
    return contestant


def variants() -> Iterator[tuple[str, Contestant]]:
    """Yield each contestant with each memory and with compile off and on, and the name of that.

    All have AdamW, this project's also its default recipe, Muon. No precision is varied: on the CPU all are the
    same program.
    """
    memory, compiled = {"activation_checkpointing": True}, {"compile": True}
    for name, one in PLAIN.items():
        yield name, one
        if one.as_a_run:
            yield f"{name}-muon", replace(one, says=f"{one.says}, optim=muon", settings={"optim": "muon"})
        yield f"{name}-compile", replace(one, says=f"{one.says}, compile=on", settings=compiled)
        yield f"{name}-ckpt", replace(one, says=f"{one.says}, memory=ckpt", settings=memory)
        both = f"{one.says}, memory=ckpt compile=on"
        yield f"{name}-ckpt-compile", replace(one, says=both, settings=memory | compiled)


PLAIN = {
    "ours": Contestant("this project's loop, as a user runs it", the_loop),
    "bare": Contestant("the same GPT in a bare loop", bare),
    "hf": Contestant(
        "Hugging Face LlamaForCausalLM of the same shape in a bare loop", hugging_face, as_a_run=False
    ),
}
CONTESTANTS = dict(variants())
