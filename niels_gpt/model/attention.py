"""Causal attention: hand-written autograd for CPU speed at T <= 512 (a third less time), PyTorch's otherwise.

`segments` (B, T) number the dialogue or document of each position. A segment is contiguous, and its queries see no
key of another. On the CPU this takes no extra time: only products within a segment are computed.

Shapes: N = B x H heads of D channels, T tokens; a part has Q queries of some heads and the K keys that they see.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

DEVICE = "cpu"  # whose attention is ours
MAX_TOKENS = 512  # without segments; beyond, PyTorch's kernel is faster
QUERIES = 128  # per part: more queries compute more masked scores
SCORES = 1 << 20  # per part without segments: they stay in the cache; all T x T scores are never in memory
Slices = tuple[slice, slice]  # of (N, T, D)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, segments: Tensor | None = None) -> Tensor:
    """Return the attention output (B, H, T, D) of queries, keys and values (B, H, T, D) each."""
    if q.device.type == DEVICE and (segments is not None or q.shape[2] <= MAX_TOKENS):
        q = q * q.shape[-1] ** -0.5
        out: Tensor = attend(*(x.flatten(0, 1) for x in (q, k, v)), segments)  # (N, T, D)
        return out.view_as(q)
    if segments is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=find_visible(segments))


def traced_attention(q: Tensor, k: Tensor, v: Tensor, segments: Tensor | None, trace: list[Tensor]) -> Tensor:
    """Attend as above, and append the probabilities, (B, H, T, T), to `trace`."""
    T, D = q.shape[-2:]
    visible = find_visible(torch.zeros(1, T, device=q.device) if segments is None else segments)
    scores = (q @ k.transpose(-2, -1)) * D**-0.5  # (B, H, T, T)
    probabilities = scores.float().masked_fill(~visible, float("-inf")).softmax(-1)
    trace.append(probabilities)
    attended: Tensor = probabilities.to(v.dtype) @ v
    return attended


def find_visible(segments: Tensor) -> Tensor:
    """Return whether each query sees each key, (B, 1, T, T): one of its own segment that is not after it."""
    same: Tensor = segments.unsqueeze(2) == segments.unsqueeze(1)
    return same.tril().unsqueeze(1)


@torch.library.custom_op("niels_gpt::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor, segments: Tensor | None) -> Tensor:
    """Return the attention of scaled queries, (N, T, D).

    No T x T tensor is kept: the backward pass computes the probabilities again, as FlashAttention does (Dao et
    al., 2022), in products large enough to be fast on the CPU. To torch.compile it is one operation.
    """
    out = torch.empty_like(q)
    for asking, seen, mask, _, room in _split_parts(q, segments):
        p = _compute_probabilities(_pack(q, asking), _pack(k, seen), mask, room[0])
        torch.bmm(p, _pack(v, seen), out=out[asking])
    return out


@torch.library.custom_op("niels_gpt::attend_backward", mutates_args=())
def attend_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, segments: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v; a key's is a sum over the queries that see it."""
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for asking, seen, mask, begun, room in _split_parts(q, segments):
        queries, d_here = _pack(q, asking), _pack(d_out, asking)  # (heads, Q, D)
        keys, values = _pack(k, seen), _pack(v, seen)  # (heads, K, D)
        p = _compute_probabilities(queries, keys, mask, room[0])  # (heads, Q, K)
        d_v[seen].baddbmm_(p.transpose(1, 2), d_here, beta=begun)
        d_p = torch.bmm(d_here, values.transpose(1, 2), out=room[1])
        d_scores = torch.ops.aten._softmax_backward_data.out(d_p, p, -1, p.dtype, grad_input=d_p)
        torch.bmm(d_scores, keys, out=d_q[asking])
        d_k[seen].baddbmm_(d_scores.transpose(1, 2), queries, beta=begun)
    return d_q, d_k, d_v


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, segments: Tensor | None) -> Tensor:
    return torch.empty_like(q)


@attend_backward.register_fake
def _(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save_inputs(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    return *attend_backward(d_out.contiguous(), *ctx.saved_tensors), None


attend.register_autograd(_differentiate, setup_context=_save_inputs)


def _split_parts(q: Tensor, segments: Tensor | None) -> Iterator[tuple[Slices, Slices, Tensor, bool, Tensor]]:
    """Yield the queries and keys of a part, the mask (Q, Q) of its last Q keys, and whether a part had these keys.

    A part has a group of heads, with segments those of one sequence. The mask is added to the scores. The last
    queries come first, since they see all keys. With a part comes memory, (2, heads, Q, K), that all parts share.
    """
    N, T, _ = q.shape
    Q = min(QUERIES, T)
    step = min(N, max(1, SCORES // (Q * T))) if segments is None else N // len(segments)  # heads
    future, memory = q.new_full((Q, Q), float("-inf")).triu_(1), q.new_empty(2, step * Q * T)
    for head in range(0, N, step):
        heads = slice(head, min(head + step, N))
        numbers = None if segments is None else segments[head // step]  # (T)
        for start, end in [(0, T)] if numbers is None else _group_segments(numbers):
            for first in reversed(range(start, end, QUERIES)):
                after = min(first + QUERIES, end)
                shape = heads.stop - head, after - first, after - start
                mask = future[: after - first, : after - first]
                if numbers is not None:  # several short segments may share a part
                    own = numbers[first:after]
                    mask = mask.masked_fill(own[:, None] != own, float("-inf"))
                room = memory[:, : math.prod(shape)].view(2, *shape)
                yield (heads, slice(first, after)), (heads, slice(start, after)), mask, after < end, room


def _group_segments(numbers: Tensor) -> list[tuple[int, int]]:
    """Return spans of whole segments of (T): one each, or several that are no longer than QUERIES together."""
    spans: list[tuple[int, int]] = []
    ends = (numbers.diff().nonzero().flatten() + 1).tolist()
    for start, end in pairwise([0, *ends, len(numbers)]):
        if spans and end - spans[-1][0] <= QUERIES:
            start = spans.pop()[0]
        spans.append((start, end))
    return spans


def _pack(x: Tensor, part: Slices) -> Tensor:
    """Return a part of (N, T, D) without gaps, which would slow a transposed product."""
    return x[part].contiguous()


def _compute_probabilities(queries: Tensor, keys: Tensor, mask: Tensor, room: Tensor) -> Tensor:
    """Return the attention probabilities of a part, (heads, Q, K); 0 in a query's future and in other segments."""
    scores = torch.bmm(queries, keys.transpose(1, 2), out=room)
    scores[:, :, -queries.shape[1] :].add_(mask)
    return torch.softmax(scores, -1, out=scores)
