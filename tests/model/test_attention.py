"""Attention is causal and stays within a segment, by our kernel for the CPU as by PyTorch's."""

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor

from niels_gpt.model import attention
from niels_gpt.model.attention import causal_attention

PATHS = {"ours": "cpu", "PyTorch's, as on mps": "none"}


def number_segments(B: int, T: int, shortest: int, longest: int) -> Tensor:
    """Return rows of segments of random lengths, (B, T)."""
    lengths = torch.randint(shortest, longest + 1, (B, T), generator=torch.Generator().manual_seed(longest))
    places = torch.arange(T).expand(B, T).contiguous()
    return torch.searchsorted(lengths.cumsum(1), places, right=True)


def attend_plainly(q: Tensor, k: Tensor, v: Tensor, segments: Tensor) -> Tensor:
    place = torch.arange(q.shape[2])
    hidden = (segments[:, None, :, None] != segments[:, None, None, :]) | (place[:, None] < place)
    probabilities: Tensor = (q @ k.mT * q.shape[3] ** -0.5).masked_fill(hidden, float("-inf")).softmax(3)
    return probabilities @ v


def differentiate(attend: Callable[..., Tensor], segments: Tensor | None, *inputs: Tensor) -> list[Tensor]:
    """Return the attention and the gradients of queries, keys and values."""
    q, k, v, d_out = (x.clone().requires_grad_() for x in inputs)
    out = attend(q, k, v, segments)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), d_out)]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(
    ("B", "H", "T", "lengths"),
    [
        (1, 1, 1, (1, 1)),
        (2, 3, 40, (1, 4)),  # several to a part
        (3, 2, 300, (1, 200)),  # some are longer than a part
        (2, 6, 512, (50, 300)),
        (2, 6, 512, (512, 512)),  # one only
        (1, 2, 700, (100, 400)),  # more than our kernel takes without segments
    ],
)
def test_within_segments_it_is_the_softmax_of_masked_scores_and_so_are_its_gradients(
    path: str, B: int, H: int, T: int, lengths: tuple[int, int]
) -> None:
    generator, segments = torch.Generator().manual_seed(0), number_segments(B, T, *lengths)
    inputs = [torch.randn(B, H, T, 8, dtype=torch.float64, generator=generator) for _ in range(4)]
    with mock.patch.object(attention, "DEVICE", path):
        found = differentiate(causal_attention, segments, *inputs)
    torch.testing.assert_close(found, differentiate(attend_plainly, segments, *inputs), rtol=0, atol=1e-12)


def test_one_segment_is_the_same_as_none() -> None:
    inputs = [torch.randn(2, 3, 200, 8, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    whole, one = (differentiate(causal_attention, s, *inputs) for s in (None, torch.zeros(2, 200).long()))
    torch.testing.assert_close(one, whole)
