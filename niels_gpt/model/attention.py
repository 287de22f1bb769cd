"""Causal attention: PyTorch's own, or on the CPU in parts, which takes two thirds of the time where T is small.

Shapes: N = B x H heads of D channels, T tokens; a part has Q queries of some heads and the K keys that they see.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LONGEST = 512  # tokens; beyond, PyTorch's kernel is the faster one
QUERIES = 128  # of a part: with more of them more is computed that is masked away
SCORES = 1 << 20  # of a part at most: they stay in the cache, and are all that is ever there of T x T


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what each token attends to, (B, H, T, D), of queries, keys and values (B, H, T, D) each."""
    if q.device.type != "cpu" or q.shape[2] > LONGEST:
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


class _Part(NamedTuple):
    heads: slice
    queries: slice
    keys: slice

    def of_queries(self, x: Tensor) -> Tensor:
        """Return what belongs to the part's queries, of (N, T, ...)."""
        return x[self.heads, self.queries]

    def of_keys(self, x: Tensor) -> Tensor:
        """Return what belongs to the part's keys, of (N, T, ...)."""
        return x[self.heads, self.keys]


@torch.library.custom_op("niels_gpt::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the attention of scaled queries, (N, T, D).

    No T x T tensor is kept: the backward pass makes the probabilities again. That is the plan of FlashAttention
    (Dao et al., 2022), in products large enough for the CPU to be good at. To torch.compile it is one operation.
    """
    out, room = torch.empty_like(q), _room(q)
    for part in _parts(q):
        p = _probabilities(part, q, k, room)
        torch.bmm(p, part.of_keys(v), out=part.of_queries(out))
    return out


@torch.library.custom_op("niels_gpt::attend_backward", mutates_args=())
def attend_backward(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v; a key's is a sum over the queries that see it."""
    d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    room, more_room = _room(q), _room(q)
    for part in _parts(q):
        p, d_here = _probabilities(part, q, k, room), part.of_queries(d_out)
        part.of_keys(d_v).baddbmm_(p.transpose(1, 2), d_here)
        d_p = torch.bmm(d_here, part.of_keys(v).transpose(1, 2), out=more_room[: p.numel()].view_as(p))
        d_scores = torch.ops.aten._softmax_backward_data.out(d_p, p, -1, p.dtype, grad_input=d_p)
        torch.bmm(d_scores, part.of_keys(k), out=part.of_queries(d_q))
        part.of_keys(d_k).baddbmm_(d_scores.transpose(1, 2), part.of_queries(q))
    return d_q, d_k, d_v


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.empty_like(q)


@attend_backward.register_fake
def _(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, d_out: Tensor) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = attend_backward(d_out.contiguous(), *ctx.saved_tensors)
    return gradients


attend.register_autograd(_gradients, setup_context=_keep)


def _parts(q: Tensor) -> Iterator[_Part]:
    """Yield the parts of (N, T, D)."""
    N, T, _ = q.shape
    heads = _heads(q)
    for head in range(0, N, heads):
        for first in range(0, T, QUERIES):
            after = min(first + QUERIES, T)
            yield _Part(slice(head, min(head + heads, N)), slice(first, after), slice(0, after))


def _heads(q: Tensor) -> int:
    """Return the heads of a part of (N, T, D)."""
    N, T, _ = q.shape
    return min(N, max(1, SCORES // (min(QUERIES, T) * T)))


def _room(q: Tensor) -> Tensor:
    """Return memory for the scores of any part, which all of them use in turn."""
    T = q.shape[1]
    return q.new_empty(_heads(q) * min(QUERIES, T) * T)


def _probabilities(part: _Part, q: Tensor, k: Tensor, room: Tensor) -> Tensor:
    """Return how much each of a part's queries attends to each key, (heads, Q, K); 0 in the query's future."""
    queries, keys = part.of_queries(q), part.of_keys(k)
    n, Q, K = *queries.shape[:2], keys.shape[1]
    scores = torch.bmm(queries, keys.transpose(1, 2), out=room[: n * Q * K].view(n, Q, K))
    scores[:, :, K - Q :].add_(q.new_full((Q, Q), float("-inf")).triu_(1))
    return torch.softmax(scores, -1, out=scores)
