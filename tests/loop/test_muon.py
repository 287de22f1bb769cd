"""Muon's updates are orthogonal, and those of PyTorch's own Muon."""

from unittest import mock

import pytest
import torch

from train.loop.muon import Muon, choose_dtype, orthogonalize

SHAPES = [(24, 24), (48, 24), (24, 72)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_updates_are_those_of_torchs_muon_but_for_its_bfloat16(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    own = Muon([ours], lr=0.02, weight_decay=0.1, momentum=0.9)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        own.step()
        reference.step()
    assert (ours - start).norm() > 0.2
    torch.testing.assert_close(ours - start, theirs - start, rtol=0, atol=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one_and_singular_vectors_stay(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    with mock.patch("train.loop.muon.choose_dtype", return_value=dtype):
        made = orthogonalize(matrix).float()
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    assert made.shape == matrix.shape
    assert torch.linalg.svdvals(made)[values / values[0] > 0.1].sub(1).abs().max() < 0.4
    turned = u.T @ made @ vt.T  # diagonal where the singular vectors are the same
    assert (turned - turned.diag().diag()).abs().max() < 0.05


def test_bfloat16_is_used_where_it_is_fast_only() -> None:
    cpu = torch.device("cpu")
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with mock.patch("torch.cpu.get_capabilities", return_value={"avx512_bf16": fast}):
            assert choose_dtype(cpu) == dtype
    with mock.patch("torch.cpu.get_capabilities", return_value={}):
        assert choose_dtype(cpu) == torch.float32
        assert choose_dtype(torch.device("mps")) == torch.bfloat16
