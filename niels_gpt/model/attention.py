"""Causal attention: hand-written autograd for CPU speed at T <= 512 (a third less time), PyTorch's otherwise.

`segments` (B, T) number the dialogue or document of each position. A segment is contiguous, and its queries see no
key of another. On the CPU this takes little time: keys before the segments of a part are left out.

Shapes: N = B x H heads of D channels, T tokens; a part has Q queries of some heads and the K keys that they see.
"""

import math
from collections.abc import Iterator
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
    make = torch.empty_like if segments is None else torch.zeros_like  # the last queries may not see all keys
    d_q, d_k, d_v = torch.empty_like(q), make(k), make(v)
    for asking, seen, mask, begun, room in _split_parts(q, segments):
        queries, d_here = _pack(q, asking), _pack(d_out, asking)  # (heads, Q, D)
        keys, values = _pack(k, seen), _pack(v, seen)  # (heads, K, D)
        p = _compute_probabilities(queries, keys, mask, room[0])  # (heads, Q, K)
        d_v[seen].baddbmm_(p.transpose(1, 2), d_here, beta=begun or segments is not None)
        d_p = torch.bmm(d_here, values.transpose(1, 2), out=room[1])
        d_scores = torch.ops.aten._softmax_backward_data.out(d_p, p, -1, p.dtype, grad_input=d_p)
        torch.bmm(d_scores, keys, out=d_q[asking])
        d_k[seen].baddbmm_(d_scores.transpose(1, 2), queries, beta=begun or segments is not None)
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
    """Yield the queries and keys of a part, a mask for its last keys, and whether a part before had these keys.

    A part has a group of heads, with segments those of S whole sequences, and begins with the first key that
    one of its queries sees. The mask, (S, 1, Q, keys), is added to the scores. The last queries come first. All
    parts share the memory that comes with them, (2, heads, Q, K).
    """
    N, T, _ = q.shape
    Q = min(QUERIES, T)
    step = min(N, max(1, SCORES // (Q * T)))  # heads
    if segments is not None:
        H, positions = N // len(segments), torch.arange(1, T)
        step = max(H, step - step % H)
        begins = F.pad(positions * (segments.diff() != 0), (1, 0)).cummax(1).values  # (B, T): of each segment
    future, memory = q.new_full((1, 1, Q, Q), float("-inf")).triu_(1), q.new_empty(2, step * Q * T)
    for head in range(0, N, step):
        heads = slice(head, min(head + step, N))
        for first in reversed(range(0, T, QUERIES)):
            after = min(first + QUERIES, T)
            start, mask = 0, future[:, :, : after - first, : after - first]
            if segments is not None:
                own = slice(heads.start // H, heads.stop // H)  # sequences
                start = int(begins[own, first].min())
                hidden = segments[own, first:after, None] != segments[own, None, start:after]
                apart = q.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf")).unsqueeze(1)
                apart[..., first - start :] += mask
                mask = apart
            shape = heads.stop - head, after - first, after - start
            room = memory[:, : math.prod(shape)].view(2, *shape)
            yield (heads, slice(first, after)), (heads, slice(start, after)), mask, after < T, room


def _pack(x: Tensor, part: Slices) -> Tensor:
    """Return a part of (N, T, D) without gaps, which would slow a transposed product."""
    return x[part].contiguous()


def _compute_probabilities(queries: Tensor, keys: Tensor, mask: Tensor, room: Tensor) -> Tensor:
    """Return the attention probabilities of a part, (heads, Q, K); 0 in a query's future and in other segments."""
    scores = torch.bmm(queries, keys.transpose(1, 2), out=room)
    scores.unflatten(0, (len(mask), -1))[..., -mask.shape[-1] :].add_(mask)
    return torch.softmax(scores, -1, out=scores)
