"""Compute the logits after a text, reusing the keys and values of what it shares with the text before.

Shapes: n new tokens, S keys in view; H_kv heads of keys, each shared by G = H / H_kv heads of queries; D channels.
"""

from collections.abc import Sequence
from operator import ne
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from niels_gpt.model.blocks import Block, rotate
from niels_gpt.model.gpt import GPT

DEVICE = "cpu"  # takes tensors of any shape; on mps, each new shape would keep memory


class KVCache:
    """A trained model with the keys, rotated, and values of the last text that it has read.

    For speed it copies the weights into fewer matrices, so it does not follow a later change of the model.
    """

    def __init__(self, model: GPT) -> None:
        cfg = self._cfg = model.cfg
        self.ids: list[int] = []
        self._model, self._device = model, model.device
        self._blocks = [BlockWeights.of(cast(Block, block)) for block in model.blocks]
        self._head = _transpose(model.head_weight)  # (C, V)
        self._shape = cfg.H + 2 * cfg.kv_heads, cfg.C // cfg.H  # of a token's queries, keys and values
        shape = 2, cfg.L, cfg.kv_heads, cfg.T, cfg.C // cfg.H
        self.keys, self.values = torch.zeros(shape, device=self._device)  # (L, H_kv, T, D) each

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the logits (V), in fp32, of the token after `ids`, 1 to T: GPT.forward's, up to rounding.

        It computes only the ids from the first that differs from the last text, in one pass.
        """
        count, T = len(ids), self._cfg.T
        if not 1 <= count <= T:
            raise ValueError(f"{count} ids, but the model reads 1 to {T}")
        first = min([*map(ne, self.ids, ids), True].index(True), count - 1)
        del self.ids[first:]
        n, seen = count - first, count
        if self._device.type != DEVICE:  # a power of two of ids, and all keys
            n, seen = min(1 << (n - 1).bit_length(), T), T
            first = min(first, T - n)
        new = torch.tensor([*ids[first : first + n], *[0] * (first + n - count)])
        positions = torch.arange(first, first + n)
        mask = self._make_mask(positions, seen)
        x = self._read(new.to(self._device), positions.to(self._device), seen, mask)  # (n, C)
        self.ids += ids[len(self.ids) :]
        last = x.index_select(0, torch.tensor([count - 1 - first]).to(self._device))
        with torch.autocast(self._device.type, enabled=False):  # as in GPT.forward
            logits: Tensor = (self._model.norm(last).float() @ self._head.float())[0]
            return logits

    def _make_mask(self, positions: Tensor, seen: int) -> Tensor | None:
        """Return what to add to the scores, (1 or H_kv, G n, S); None where causal attention has a kernel."""
        n, H_kv, on_cpu = len(positions), self._cfg.kv_heads, self._device.type == DEVICE
        if on_cpu and (n == 1 or (n == seen and H_kv == self._cfg.H)):
            return None
        hidden = torch.arange(seen) > positions.unsqueeze(1)  # (n, S)
        mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        # Versions of mps are wrong about masks of booleans, and about those that heads share.
        return mask.repeat(1 if on_cpu else H_kv, self._cfg.H // H_kv, 1).to(self._device)

    def _read(self, ids: Tensor, positions: Tensor, seen: int, mask: Tensor | None) -> Tensor:
        """Return the residual stream (n, C) after the last block; keep the keys and values."""
        n, H_kv, C, eps = len(ids), self._cfg.kv_heads, (self._cfg.C,), self._cfg.norm_eps
        cos, sin = (table.index_select(0, positions).unsqueeze(1) for table in (self._model.cos, self._model.sin))
        x: Tensor = self._model.embedding(ids)  # (n, C)
        for block, keys, values in zip(self._blocks, self.keys, self.values, strict=True):
            heads = (F.rms_norm(x, C, block.attention_norm, eps) @ block.qkv).view(n, *self._shape)
            v = heads[:, -H_kv:]
            q, k = rotate(heads[:, :-H_kv].float(), cos, sin).to(v.dtype).tensor_split([-H_kv], 1)  # (n, H, D)
            keys.index_copy_(1, positions, k.transpose(0, 1).to(keys.dtype))
            values.index_copy_(1, positions, v.transpose(0, 1).to(values.dtype))
            q = q.unflatten(1, (H_kv, -1)).permute(1, 2, 0, 3).flatten(1, 2)  # (H_kv, G n, D)
            y = F.scaled_dot_product_attention(  # with a batch of one: the fast kernel takes nothing less
                q[None], keys[None, :, :seen], values[None, :, :seen], mask, is_causal=mask is None and n > 1
            )
            y = y.view(H_kv, -1, n, y.shape[-1]).permute(2, 0, 1, 3).reshape(n, -1)  # (n, C)
            x = x + y @ block.out
            gate, up = (F.rms_norm(x, C, block.feed_forward_norm, eps) @ block.gate_up).chunk(2, dim=-1)
            x = x + (F.silu(gate) * up) @ block.down
        return x


class BlockWeights(NamedTuple):
    """The weights of a Block in four matrices, (inputs, outputs): the faster layout for one row of inputs."""

    attention_norm: Tensor
    qkv: Tensor
    out: Tensor
    feed_forward_norm: Tensor
    gate_up: Tensor
    down: Tensor

    @classmethod
    def of(cls, block: Block) -> "BlockWeights":
        """Copy them."""
        attention, feed_forward = block.attention, block.feed_forward
        return cls(
            block.attention_norm.weight.detach(),
            _transpose(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight),
            _transpose(attention.o_proj.weight),
            block.feed_forward_norm.weight.detach(),
            _transpose(feed_forward.gate_proj.weight, feed_forward.up_proj.weight),
            _transpose(feed_forward.down_proj.weight),
        )


def _transpose(*weights: Tensor) -> Tensor:
    return torch.cat([weight.detach() for weight in weights]).t().contiguous()
