"""Causal attention: hand-written autograd for CPU speed at T <= 512 (a third less time), PyTorch's otherwise.

Shapes: N = B x H heads of D channels, T tokens; a part has Q queries of some heads and the K keys that they see.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_TOKENS = 512  # beyond, PyTorch's kernel is faster
QUERIES = 128  # per part: more queries compute more masked scores
SCORES = 1 << 20  # per part at most: they stay in the cache; all T x T scores are never in memory
Slices = tuple[slice, slice]  # of (N, T, D)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the attention output (B, H, T, D) of queries, keys and values (B, H, T, D) each."""
    if q.device.type != "cpu" or q.shape[2] > MAX_TOKENS:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    q = q * q.shape[-1] ** -0.5
    out: Tensor = attend(*(x.flatten(0, 1) for x in (q, k, v)))  # (N, T, D)
    return out.view_as(q)


def traced_attention(q: Tensor, k: Tensor, v: Tensor, trace: list[Tensor]) -> Tensor:
    """Attend as above, and append the probabilities, (B, H, T, T), to `trace`."""
    T, D = q.shape[-2:]
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(-2, -1)) * D**-0.5  # (B, H, T, T)
    probabilities = scores.float().masked_fill(future, float("-inf")).softmax(-1)
    trace.append(probabilities)
    attended: Tensor = probabilities.to(v.dtype) @ v
    return attended


@torch.library.custom_op("niels_gpt::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the attention of scaled queries, (N, T, D).

    No T x T tensor is kept: the backward pass computes the probabilities again, as FlashAttention does (Dao et
    al., 2022), in products large enough to be fast on the CPU. To torch.compile it is one operation.
    """
    out, (buffer, future) = torch.empty_like(q), _prepare_scores(q)
    for asking, seen in _split_parts(q):
        p = _compute_probabilities(_pack(q, asking), _pack(k, seen), buffer, future)
        torch.bmm(p, _pack(v, seen), out=out[asking])
    return out


@torch.library.custom_op("niels_gpt::attend_backward", mutates_args=())
def attend_backward(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v; a key's is a sum over the queries that see it."""
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    buffer, future = _prepare_scores(q)
    more_room = torch.empty_like(buffer)
    for asking, seen in _split_parts(q):
        queries, d_here = _pack(q, asking), _pack(d_out, asking)  # (heads, Q, D)
        keys, values = _pack(k, seen), _pack(v, seen)  # (heads, K, D)
        p = _compute_probabilities(queries, keys, buffer, future)  # (heads, Q, K)
        begun = 0.0 if keys.shape[1] == k.shape[1] else 1.0  # the first part of some heads sees all of their keys
        d_v[seen].baddbmm_(p.transpose(1, 2), d_here, beta=begun)
        d_p = torch.bmm(d_here, values.transpose(1, 2), out=more_room[: p.numel()].view_as(p))
        d_scores = torch.ops.aten._softmax_backward_data.out(d_p, p, -1, p.dtype, grad_input=d_p)
        torch.bmm(d_scores, keys, out=d_q[asking])
        d_k[seen].baddbmm_(d_scores.transpose(1, 2), queries, beta=begun)
    return d_q, d_k, d_v


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.empty_like(q)


@attend_backward.register_fake
def _(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, d_out: Tensor) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = attend_backward(d_out.contiguous(), *ctx.saved_tensors)
    return gradients


attend.register_autograd(_differentiate, setup_context=_save_inputs)


def _split_parts(q: Tensor) -> Iterator[tuple[Slices, Slices]]:
    """Yield the queries of a part and the keys that they see, a group of heads at a time, last queries first."""
    N, T, _ = q.shape
    for head in range(0, N, _count_heads(q)):
        heads = slice(head, min(head + _count_heads(q), N))
        for first in reversed(range(0, T, QUERIES)):
            after = min(first + QUERIES, T)
            yield (heads, slice(first, after)), (heads, slice(0, after))


def _pack(x: Tensor, part: Slices) -> Tensor:
    """Return a part of (N, T, D) without gaps, which would slow a transposed product."""
    return x[part].contiguous()


def _count_heads(q: Tensor) -> int:
    N, T, _ = q.shape
    return min(N, max(1, SCORES // (min(QUERIES, T) * T)))


def _prepare_scores(q: Tensor) -> tuple[Tensor, Tensor]:
    """Return a buffer for the scores of any part, and the causal mask (Q, Q) of queries and keys side by side."""
    T, Q = q.shape[1], min(QUERIES, q.shape[1])
    return q.new_empty(_count_heads(q) * Q * T), q.new_full((Q, Q), float("-inf")).triu_(1)


def _compute_probabilities(queries: Tensor, keys: Tensor, buffer: Tensor, future: Tensor) -> Tensor:
    """Return the attention probabilities of a part, (heads, Q, K); 0 in a query's future."""
    n, Q, K = *queries.shape[:2], keys.shape[1]
    scores = torch.bmm(queries, keys.transpose(1, 2), out=buffer[: n * Q * K].view(n, Q, K))
    scores[:, :, K - Q :].add_(future[:Q, :Q])
    return torch.softmax(scores, -1, out=scores)
