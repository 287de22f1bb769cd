"""The GPT: a stack of blocks between the embedding and the head."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from niels_gpt.config import ModelCfg
from niels_gpt.loss import head_loss
from niels_gpt.model.blocks import Block, rope_tables
from niels_gpt.model.replay import ReplayState

INIT_STD = 0.02
UNTIED_STD = 0.5  # of an embedding that is not shared with the head


class GPT(nn.Module):
    """A decoder-only transformer as in Llama: RMSNorm, RoPE, SwiGLU, no biases.

    With `activation_checkpointing` each block's activations are dropped in training and recomputed in the
    backward pass (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016): same numbers, less memory,
    more time. With `compiled` the blocks are compiled for training on first use: same numbers up to rounding,
    less time.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, cfg: ModelCfg, *, activation_checkpointing: bool = False, compiled: bool = False) -> None:
        super().__init__()
        self.cfg = cfg
        self.activation_checkpointing = activation_checkpointing
        self.embedding = nn.Embedding(cfg.V, cfg.C)
        self.dropout = nn.Dropout(cfg.dropout)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.L))
        self.norm = nn.RMSNorm(cfg.C, eps=cfg.norm_eps)
        self.head = None if cfg.tie_embeddings else nn.Linear(cfg.C, cfg.V, bias=False)
        cos, sin = rope_tables(cfg.T, cfg.C // cfg.H, cfg.rope_theta)
        self.register_buffer("cos", cos, persistent=False)  # (T, 2, D/2)
        self.register_buffer("sin", sin, persistent=False)  # (T, 2, D/2)
        self._compiled = torch.compile(self._hidden, dynamic=False) if compiled else None  # noqa: TID251  off unless set
        self._init_weights()

    def _init_weights(self) -> None:
        """Initialise a tied model as GPT-2: normal weights, residual outputs scaled down by the depth.

        With a head of its own (the default) head and residual outputs start at zero, so that the first steps learn
        the token frequencies; the embedding starts at UNTIED_STD, since no logit depends on its size.
        """
        onto_residual = INIT_STD * (2 * self.cfg.L) ** -0.5 if self.head is None else 0.0
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # norms start at one
            std = onto_residual if name.endswith(("o_proj.weight", "down_proj.weight")) else INIT_STD
            nn.init.normal_(parameter, mean=0.0, std=std)
        if self.head is not None:
            nn.init.normal_(self.embedding.weight, mean=0.0, std=UNTIED_STD)
            nn.init.zeros_(self.head.weight)

    def forward(self, ids: Tensor, trace: list[Tensor] | None = None, segments: Tensor | None = None) -> Tensor:
        """Return the logits (B, T, V) of the token after each of `ids` (B, T), T at most cfg.T.

        With `segments` (B, T), contiguous numbers of dialogues or documents, attention stays within a segment. A
        `trace` list receives each block's attention probabilities, (B, H, T, T), and turns off activation
        checkpointing for the call.
        """
        x = self._hidden(ids, segments, trace)  # (B, T, C)
        with torch.autocast(x.device.type, enabled=False):  # in fp16 most gradients of the logits would underflow
            return F.linear(x.float(), self.head_weight.float())

    def loss(self, ids: Tensor, targets: Tensor, denominator: float, segments: Tensor | None = None) -> Tensor:
        """Return the next_token_loss of `ids` (B, T) and `targets` (B, T) without materializing the logits."""
        hidden = (self._compiled if self._compiled and self.training else self._hidden)(ids, segments)  # (B, T, C)
        return head_loss(hidden, self.head_weight, targets, denominator)

    def _hidden(self, ids: Tensor, segments: Tensor | None = None, trace: list[Tensor] | None = None) -> Tensor:
        """Return the input of the head, (B, T, C)."""
        T = ids.shape[1]
        cos, sin = self.cos[:T], self.sin[:T]
        recompute = self.activation_checkpointing and self.training and trace is None
        x = self.dropout(self.embedding(ids))  # (B, T, C)
        for block in self.blocks:
            if recompute:
                x = checkpoint(block, x, cos, sin, segments, use_reentrant=False, **self._replay_options())
            else:
                x = block(x, cos, sin, segments, trace)
        out: Tensor = self.norm(x)
        return out

    def _replay_options(self) -> dict[str, Any]:
        """Return the arguments of checkpoint that make a recomputed block draw the same dropout."""
        if self.cfg.dropout == 0 or self.device.type == "cpu":  # PyTorch itself replays the CPU's state
            return {}
        return {"context_fn": lambda: (nullcontext(), ReplayState(self.device))}  # forward, recomputation

    def parameter_count(self) -> int:
        """Return the number of parameters; a tied embedding counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def head_weight(self) -> Tensor:
        """The weight of the head, (V, C); the embedding's if they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embedding.weight.device
