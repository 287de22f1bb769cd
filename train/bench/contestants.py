"""The contestants of a race: each takes optimizer steps and calls `lap` after each."""

import math
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from train.bench.shapes import Shape
from train.config.schema import TrainCfgSchema
from train.hardware.step_cost import make_source, make_state
from train.loop.evaluate import UnigramBaseline
from train.loop.logger import RunLogger
from train.loop.steps import train_loop

Lap = Callable[[], None]
Loss = Callable[[Tensor, Tensor], Tensor]
CPU = torch.device("cpu")


class Contestant(NamedTuple):
    """A way to take steps, `take(shape, settings, steps, lap)`, and TrainCfgSchema's settings for it."""

    take: Callable[[Shape, dict[str, Any], int, Lap], None]
    settings: dict[str, Any]


class _TurnOver(Exception):
    pass


def run_train_loop(shape: Shape, settings: dict[str, Any], steps: int, lap: Lap) -> None:
    """Take steps as a user's run does: train_loop with its checks and logger, batches from a token file."""
    cfg = make_train_cfg(shape, settings, steps)
    state = make_state(CPU, shape.model, cfg)

    class Stopwatch(RunLogger):
        def advance(self, step: int) -> None:
            lap()
            if step == steps:
                raise _TurnOver  # a stop would save first, and count as part of the step

    with tempfile.TemporaryDirectory() as folder, suppress(_TurnOver):
        logger = Stopwatch(Path(folder), cfg.total_steps, state, UnigramBaseline(1.0, 1.0))
        train_loop(state, cfg, make_source(shape.model), [], out=Path(folder), logger=logger)


def run_bare_gpt(shape: Shape, settings: dict[str, Any], steps: int, lap: Lap) -> None:
    """Take steps with the same GPT, loss and optimizer in the shortest loop."""
    cfg = make_train_cfg(shape, settings, steps)
    state, targets = make_state(CPU, shape.model, cfg), float(shape.B * shape.model.T)
    model = state.model
    _run_bare_loop(shape, cfg, model, state.optimizer, lambda x, y: model.loss(x, y, targets), steps, lap)


def run_hugging_face(shape: Shape, settings: dict[str, Any], steps: int, lap: Lap) -> None:
    """Take steps with Hugging Face's Llama of the same shape, its own loss and fused AdamW in a bare loop."""
    from transformers import LlamaConfig, LlamaForCausalLM

    m, cfg = shape.model, make_train_cfg(shape, settings, steps)
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
    optimizer = AdamW(model.parameters(), lr=cfg.base_lr, betas=cfg.betas, fused=True)
    _run_bare_loop(
        shape, cfg, model, optimizer, lambda x, y: model(input_ids=x, shift_labels=y, labels=y).loss, steps, lap
    )


def _run_bare_loop(
    shape: Shape, cfg: TrainCfgSchema, model: nn.Module, optimizer: Optimizer, loss: Loss, steps: int, lap: Lap
) -> None:
    """Draw, forward, backward, clip, update: nothing else."""
    source = make_source(shape.model)
    for step in range(steps):
        for part in range(shape.accum_steps):
            x, y, _ = source.draw((step * shape.accum_steps + part) * shape.B, shape.B)
            (loss(x, y) / shape.accum_steps).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        lap()


def make_train_cfg(shape: Shape, settings: dict[str, Any], steps: int) -> TrainCfgSchema:
    """Return the settings of a phase that is too long to end within the race."""
    far = 10 * steps + 1000
    every: dict[str, Any] = {"eval_every": far, "ckpt_every": far, "total_steps": far, "warmup_steps": 1}
    every |= {"optim": "adamw", "base_lr": 1e-4, "schedule": "cosine", "betas": (0.9, 0.95)}
    return TrainCfgSchema(B=shape.B, accum_steps=shape.accum_steps, **every | settings)


TAKERS = {"ours": run_train_loop, "bare": run_bare_gpt, "hf": run_hugging_face}
CKPT, COMPILE = {"activation_checkpointing": True}, {"compile": True}
ENDINGS: dict[str, dict[str, Any]] = {  # precisions do not vary: on the CPU all are the same program
    "": {},
    "-muon": {"optim": "muon"},
    "-compile": COMPILE,
    "-ckpt": CKPT,
    "-ckpt-compile": CKPT | COMPILE,
}
CONTESTANTS = {
    name + ending: Contestant(take, settings)
    for name, take in TAKERS.items()
    for ending, settings in ENDINGS.items()
    if (name, ending) != ("hf", "-muon")
}
