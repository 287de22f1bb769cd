"""What can be known of mps without a Mac: the casts of autocast, and the ops that Metal has."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import ROOT
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from niels_gpt.config import ModelCfg
from niels_gpt.data.batches import Batch
from niels_gpt.loss import IGNORE
from niels_gpt.model.gpt import GPT
from niels_gpt.model.kv_cache import KVCache
from train.artifacts.checkpointing import TrainState
from train.config.schema import TrainCfgSchema
from train.loop.amp import Amp
from train.loop.evaluate import ValSource, evaluate
from train.loop.optim import make_optimizer
from train.loop.steps import optimizer_step

# The casts: our model through the rules of autocast on mps, with fake tensors, which have no numbers.

CASES: dict[str, dict[str, Any]] = {
    "fp16": {"settings": {"amp_dtype": "fp16"}, "training": True, "rows_at_once": 1000},
    "bf16": {"settings": {"amp_dtype": "bf16"}, "training": True, "rows_at_once": 1000},
    "fp16, many logits, no dropout": {"settings": {"amp_dtype": "fp16"}, "training": False, "rows_at_once": 5},
    "bf16, many logits, no dropout": {"settings": {"amp_dtype": "bf16"}, "training": False, "rows_at_once": 5},
    "off": {"settings": {"amp": False}, "training": True, "rows_at_once": 5},
}
LOW = {"fp16": "float16", "bf16": "bfloat16", "off": "float32"}
RESIDUAL = r"embedding\.out|dropout\.(in|out)|blocks\.\d\.(in|out)"
NORMS = r"(.*_)?norm\.(in|out)|blocks\.\d\.\w+_norm\.(in|out)"
HEAD = r"logits|cross_entropy\.(in|out)|loss"
PRODUCTS = r"attention\.[qkv]|.*_proj\.out|blocks\.\d\.(attention|feed_forward|dropout)\.out|a bare product"
Casts = dict[str, dict[str, list[str]]]


@pytest.fixture(scope="module")
def casts() -> Casts:
    """The dtypes that each case showed, from a process of its own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support/mps_fake.py"), json.dumps(list(CASES.values()))],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


def dtypes(seen: dict[str, list[str]], pattern: str, at_least: int) -> set[str]:
    found = [name for name in seen if re.fullmatch(pattern, name)]
    assert len(found) >= at_least, f"{pattern} is about {found} only"
    return {dtype for name in found for dtype in seen[name]}


@pytest.mark.parametrize("case", CASES)
def test_on_mps_the_products_of_blocks_have_the_asked_precision_and_all_else_is_fp32(
    casts: Casts, case: str
) -> None:
    assert dtypes(casts[case], RESIDUAL, 7) == {"float32"}
    assert dtypes(casts[case], NORMS, 10) == {"float32"}
    assert dtypes(casts[case], HEAD, 4) == {"float32"}
    assert dtypes(casts[case], PRODUCTS, 24) == {LOW[case.split(",")[0]]}
    parts = 4 if CASES[case]["rows_at_once"] == 5 else 1  # of 16 rows, 5 at once
    assert len(casts[case]["cross_entropy.in"]) == 2 * parts
    assert len(casts[case]["attention.q"]) == 6  # 2 blocks in 3 passes
    assert casts[case]["attention.mask"] == 2 * ["bool"]  # of the pass with segments


def test_on_mps_only_the_residual_sum_mixes_dtypes_and_it_gives_fp32(casts: Casts) -> None:
    """MPSGraph has aborted on mixed products (nanochat 741), so a new one should be noticed."""
    for case, seen in casts.items():
        mixed = {name: values for name, values in seen.items() if name.startswith("mixed")}
        expected = {} if case == "off" else {"mixed add": ["float32"] * 12}
        assert mixed == expected, case


LOWERED = "linear matmul mm bmm addmm scaled_dot_product_attention"
RAISED = "softmax.int log_softmax.int nll_loss layer_norm pow.Tensor_Scalar rsqrt sum sum.dim_IntList"
WITHOUT_RULE = "cross_entropy_loss rms_norm embedding mul.Tensor add.Tensor mean.dim silu"


def test_autocast_on_mps_has_the_rules_that_we_rely_on() -> None:
    """A canary: the tests above hold for a PyTorch with these rules; a new one should be read about first."""
    ruled = set(torch._C._dispatch_get_registrations_for_dispatch_key("AutocastMPS"))
    assert {f"aten::{op}" for op in f"{LOWERED} {RAISED}".split()} <= ruled
    assert not {f"aten::{op}" for op in WITHOUT_RULE.split()} & ruled


# The ops: every one of a training step must have a kernel for Metal, or be made of such as have.

COMPOSITE = ("ImplicitAutograd", "ExplicitAutograd", "ExplicitAutogradNonFunctional")
YAML = Path(torch.__file__).parent.parent / "torchgen" / "packaged" / "ATen" / "native" / "native_functions.yaml"
ON_MPS = {"MPS"} | {f"Composite{kind}" for kind in COMPOSITE}
NOT_ON_MPS = {torch.float64, torch.complex32, torch.complex64, torch.complex128}


@cache
def kernels() -> dict[str, str]:
    """What PyTorch's list of its own ops says of each."""
    entries = YAML.read_text(encoding="utf-8").split("\n- func: ")[1:]
    return {entry.partition("(")[0]: entry for entry in entries}


def has_kernel(op: str) -> bool:
    """Whether `op`, as in "mul.Tensor", can run on mps; one that is not in the list cannot."""
    entry = kernels().get(op)
    if entry is None:
        return False
    if delegate := re.search(r"^  structured_delegate: (\S+)$", entry, re.MULTILINE):
        return has_kernel(delegate[1])
    dispatch = re.search(r"^  dispatch:.*\n((?:    .*\n?)+)", entry, re.MULTILINE)
    if dispatch is None:
        return True  # made of other ops, which are seen too
    keys = re.findall(r"^    ([\w, ]+):", dispatch[1], re.MULTILINE)
    return bool(ON_MPS & {key.strip() for line in keys for key in line.split(",")})


class Record(TorchDispatchMode):
    """Notes every op, and those that make or take what mps has no dtype for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: set[str] = set()
        self.too_wide: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        namespace, _, name = func.name().partition("::")
        if namespace == "profiler":  # marks on the time line, without tensors
            return out
        self.ops.add(name if namespace == "aten" else func.name())
        if any(leaf.dtype in NOT_ON_MPS for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)):
            self.too_wide.add(name)
        return out

    def missing(self) -> set[str]:
        return {op for op in self.ops if not has_kernel(op)}


AMPS: dict[str, Amp] = {"fp32": nullcontext, "fp16": partial(torch.autocast, "cpu", dtype=torch.float16)}


@pytest.fixture(scope="module", params=AMPS)
def recorded(request: pytest.FixtureRequest) -> Record:
    """A training step and an evaluation on the CPU, by the ways that mps goes: no foreach, attention spelt out."""
    cfg = TrainCfgSchema(B=2, accum_steps=2, activation_checkpointing=True, grad_clip=1e-3)
    torch.manual_seed(0)
    model = GPT(
        ModelCfg(V=256, T=16, C=16, L=2, H=2, d_ff=32, dropout=0.1, tie_embeddings=True),
        activation_checkpointing=True,
    )
    state = TrainState(model, make_optimizer(model, cfg))
    x = torch.randint(0, 256, (4, 16))
    y = torch.where(torch.arange(16) < 3, IGNORE, x.roll(-1, 1))
    segments = torch.arange(16).expand(4, 16) // 5
    batches = iter([Batch(x, y), Batch(x, y, segments), Batch(x[:2], y[:2].clone(), segments[:2])])
    rows = mock.MagicMock(draw=lambda _, count: next(batches))  # made beforehand
    rows.__len__.return_value = 2
    amp, record = AMPS[request.param], Record()
    with (
        mock.patch("niels_gpt.loss.ROWS", 20),
        mock.patch("niels_gpt.model.attention.DEVICE", "mps"),
        mock.patch("train.loop.steps.choose_loss_scale", return_value=64.0),
        mock.patch("torch.nn.utils.clip_grad._has_foreach_support", return_value=False),
        sdpa_kernel(SDPBackend.MATH),
        record,
    ):
        optimizer_step(state, cfg, rows, amp, 1e-3)
        optimizer_step(state, cfg, rows, amp, 1e-3)  # within segments
        evaluate(model, [ValSource("rows", rows, 1.0, 2)], cfg.B, amp)
    return record


def test_every_op_and_dtype_of_a_training_step_is_there_on_mps(recorded: Record) -> None:
    asked = (
        "mm bmm _fused_adamw_ linalg_vector_norm embedding_dense_backward nll_loss_forward mul_.Tensor eq.Tensor"
    )
    assert set(asked.split()) <= recorded.ops, "the step no longer does what this test is about"
    assert {op for op in recorded.ops if "foreach" in op} == {"_foreach_add_.Scalar"}  # AdamW counts its steps
    assert not {op for op in recorded.ops if "scaled_dot_product" in op or "rms_norm" in op}
    assert recorded.missing() == recorded.too_wide == set()
    for fused in ("_fused_rms_norm", "_scaled_dot_product_attention_math_for_mps"):  # only mps takes these
        assert has_kernel(fused)


def test_every_op_and_dtype_of_generation_is_there_on_mps() -> None:
    cache = KVCache(GPT(ModelCfg(V=256, T=16, C=16, L=2, H=2, H_kv=1, d_ff=32)))
    with mock.patch("niels_gpt.model.kv_cache.DEVICE", "mps"), sdpa_kernel(SDPBackend.MATH), Record() as record:
        for count in (5, 6, 16):
            cache.logits([*range(count)])
    assert {"matmul", "index_copy_", "index_select"} <= record.ops
    assert record.missing() == record.too_wide == set()


def test_an_op_without_a_kernel_and_a_float64_are_noticed() -> None:
    """The negative control of the tests above."""
    with Record() as record:
        torch.linalg.eig(torch.eye(2))
        torch.geqrf(torch.eye(2))
        torch.ones(2) + 1
        torch.ones(2).double()
    assert record.missing() == {"linalg_eig", "geqrf"}
    assert record.too_wide == {"linalg_eig", "_to_copy"}
    assert not has_kernel("no_such_op")
