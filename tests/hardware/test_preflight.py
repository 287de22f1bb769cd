"""A run tries its device first, and refuses one that computes wrongly with the way out."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import Plan
from torch.nn import functional as F
from torch.torch_version import TorchVersion

from niels_gpt.errors import ConfigError
from niels_gpt.loss import head_loss
from niels_gpt.model.attention import causal_attention
from train.config.schema import RunCfg
from train.hardware import preflight as module
from train.hardware.preflight import check_device, find_problems, refuse_known_faults
from train.loop.amp import Amp

CPU, MPS = torch.device("cpu"), torch.device("mps")
FP16 = partial(torch.autocast, "cpu", dtype=torch.float16)  # stands in for that of mps
BF16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("amp", "dtype"), [(nullcontext, torch.float32), (FP16, torch.float16), (BF16, torch.bfloat16)]
)
def test_a_device_that_computes_rightly_passes(amp: Amp, dtype: torch.dtype) -> None:
    assert list(find_problems(CPU, amp, dtype)) == []


def test_an_autocast_that_does_nothing_or_turns_itself_off_is_seen() -> None:
    assert list(find_problems(CPU, nullcontext, torch.float16)) == ["a projection gave torch.float32"]
    unsupported = partial(torch.autocast, "cpu", dtype=torch.float64)
    with pytest.warns(UserWarning, match="Disabling autocast"):
        seen = list(find_problems(CPU, unsupported, torch.float64))
    assert seen == ["a projection gave torch.float32"]


@pytest.mark.parametrize(("said", "told"), [("no such dtype\nand more", "no such dtype"), ("", "RuntimeError")])
def test_an_operation_that_raises_is_seen(said: str, told: str) -> None:
    def break_kernel() -> AbstractContextManager[None]:
        raise RuntimeError(said)

    assert list(find_problems(CPU, break_kernel, torch.float16)) == [f"it raised {told}"]


def test_a_gradient_that_differs_from_the_cpus_is_seen() -> None:
    def wrong(*arguments: Any) -> torch.Tensor:
        loss = head_loss(*arguments)
        return 2 * loss.detach() - loss  # the right loss, with the gradient of its opposite

    amp = partial(mock.patch, "niels_gpt.model.gpt.head_loss", wrong)
    seen = list(find_problems(CPU, amp, torch.float32))
    assert len(seen) == 1 and "gradient differ from fp32 on the CPU" in seen[0]


def test_wrong_kernels_without_gradients_are_seen() -> None:
    amp = partial(
        mock.patch, "niels_gpt.model.gpt.F", SimpleNamespace(linear=lambda x, weight: -F.linear(x, weight))
    )
    assert list(find_problems(CPU, amp, torch.float32)) == ["logits without gradients differ from fp32 on the CPU"]


def test_attention_that_sees_the_future_is_seen() -> None:
    attend = torch.nn.functional.scaled_dot_product_attention

    def leaking(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Any) -> torch.Tensor:
        if segments is not None:
            return causal_attention(q, k, v, segments)
        return attend(q, k, v, is_causal=torch.is_grad_enabled())  # as mps did, in evaluation alone

    with mock.patch("niels_gpt.model.blocks.causal_attention", leaking):
        assert list(find_problems(CPU, nullcontext, torch.float32)) == ["a later token changed an earlier one"]


@pytest.mark.parametrize(
    ("training", "told"),
    [
        (True, "attention within segments gave another gradient than in fp32 on the CPU"),
        (False, "a token of one segment changed another segment"),
    ],
)
def test_attention_that_sees_another_segment_is_seen(training: bool, told: str) -> None:
    def leaking(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Any) -> torch.Tensor:
        return causal_attention(q, k, v, None if torch.is_grad_enabled() is training else segments)

    amp = partial(mock.patch, "niels_gpt.model.blocks.causal_attention", leaking)  # on the device under test alone
    assert list(find_problems(CPU, amp, torch.float32)) == [told]


def test_a_recomputation_with_other_masks_is_seen() -> None:
    noise = torch.Generator().manual_seed(0)

    def unreplayed(self: torch.nn.Dropout, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.rand(x.shape, generator=noise) > self.p)

    with mock.patch.object(torch.nn.Dropout, "forward", unreplayed):
        assert "recomputation with dropout gave another gradient" in list(
            find_problems(CPU, nullcontext, torch.float32)
        )


def test_a_dtype_that_the_device_cannot_do_fails_with_what_was_seen_and_the_way_out(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_problems", lambda *_: iter(["a projection gave torch.float32"]))
    with pytest.raises(ConfigError, match=r"amp_dtype=bf16 does not work on mps: a projection gave") as caught:
        check_device(MPS, plan("precision=bf16")[0])
    assert "torch 2." in str(caught.value) and "macOS" in str(caught.value)
    assert caught.value.hint == "use precision=off or precision=fp16"


def test_preflight_asks_nothing_of_the_cpu(plan: Plan) -> None:
    with mock.patch.object(module, "find_problems", side_effect=AssertionError):
        check_device(CPU, plan("precision=fp16")[0])


@pytest.mark.parametrize(
    ("overrides", "version", "said"),
    [
        (["train.B=512"], "2.13.1", "train.B=512 x model.T=64 is 32767 or more"),
        (["train.B=511"], "2.13.1", None),
        (["train.B=512"], "2.14.0", None),
        (["model.V=32767"], "2.13.1", "model.V=32767 is 32767 or more"),
        (["model.V=32767"], "2.14.0", None),
    ],
)
def test_what_a_torch_multiplies_wrongly_is_refused(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, overrides: list[str], version: str, said: str | None
) -> None:
    cfg: RunCfg = plan(*overrides)[0]
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    refuse_known_faults(CPU, cfg)
    with pytest.raises(ConfigError, match=said) if said else nullcontext() as caught:
        refuse_known_faults(MPS, cfg)
    assert caught is None or "2.14" in caught.value.hint
