"""The blocks of a GPT: rotary positions, attention and SwiGLU.

Shapes: B sequences, T tokens, C channels, H heads of D = C / H channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niels_gpt.config import ModelCfg
from niels_gpt.model.attention import causal_attention, traced_attention


def rope_tables(T: int, D: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin, (T, 2, D/2) each, in the half-split layout of Llama (Su et al., RoFormer, 2021).

    The sine is negated in the first half, so that `rotate` is x * cos + (x with its halves swapped) * sin.
    """
    frequencies = theta ** -(torch.arange(0, D, 2, dtype=torch.float32) / D)  # (D/2)
    angles = torch.outer(torch.arange(T, dtype=torch.float32), frequencies)  # (T, D/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([cos, cos], dim=1), torch.stack([-sin, sin], dim=1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + D/2) of channels of `x` (B, H, T, D) by its position's angle."""
    halves: Tensor = x.unflatten(-1, (2, -1))  # (B, H, T, 2, D/2)
    return (halves * cos + halves.flip(-2) * sin).flatten(-2)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and no biases; H / H_kv heads of queries share keys and values.

    No dropout on the probabilities: it takes scaled_dot_product_attention off its fast path, and versions of
    mps have ignored or refused it.
    """

    def __init__(self, cfg: ModelCfg) -> None:
        super().__init__()
        self.D, self.shared_by = cfg.C // cfg.H, cfg.H // cfg.kv_heads
        self.q_proj = nn.Linear(cfg.C, cfg.C, bias=False)
        self.k_proj = nn.Linear(cfg.C, cfg.kv_heads * self.D, bias=False)
        self.v_proj = nn.Linear(cfg.C, cfg.kv_heads * self.D, bias=False)
        self.o_proj = nn.Linear(cfg.C, cfg.C, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, segments: Tensor | None, trace: list[Tensor] | None = None
    ) -> Tensor:
        """Map (B, T, C) to (B, T, C), within `segments` (B, T) if given; a `trace` receives the probabilities."""
        B, T, C = x.shape
        q, k, v = (
            project(x).view(B, T, -1, self.D).transpose(1, 2)  # (B, H or H_kv, T, D)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        # In fp32: a product of two dtypes can crash on mps.
        q, k = (rotate(part.float(), cos, sin).to(v.dtype) for part in (q, k))
        if self.shared_by > 1:  # (B, H, T, D) again
            k, v = (part.repeat_interleave(self.shared_by, dim=1) for part in (k, v))
        y = causal_attention(q, k, v, segments) if trace is None else traced_attention(q, k, v, segments, trace)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(B, T, C))
        return out


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer, GLU Variants Improve Transformer, 2020)."""

    def __init__(self, cfg: ModelCfg) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(cfg.C, cfg.d_ff, bias=False)
        self.up_proj = nn.Linear(cfg.C, cfg.d_ff, bias=False)
        self.down_proj = nn.Linear(cfg.d_ff, cfg.C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """Pre-norm attention, then a pre-norm feed-forward layer, each added to the residual stream."""

    def __init__(self, cfg: ModelCfg) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(cfg.C, eps=cfg.norm_eps)
        self.attention = Attention(cfg)
        self.feed_forward_norm = nn.RMSNorm(cfg.C, eps=cfg.norm_eps)
        self.feed_forward = SwiGLU(cfg)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, segments: Tensor | None, trace: list[Tensor] | None = None
    ) -> Tensor:
        """Map (B, T, C) to (B, T, C); arguments as in Attention."""
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin, segments, trace))
        out: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return out
