"""What can be known of mps without a Mac: the casts of autocast, the ops that Metal has, and what is banned."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
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
from train.amp import Amp
from train.checkpointing import TrainState
from train.config import TrainCfgSchema
from train.evaluate import evaluate
from train.model import compile_active
from train.optim import make_optimizer
from train.train_loop import optimizer_step

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
        [sys.executable, str(ROOT / "tests" / "mps_fake.py"), json.dumps(list(CASES.values()))],
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
def test_on_mps_residual_norms_head_and_loss_are_fp32_in_every_precision(casts: Casts, case: str) -> None:
    assert dtypes(casts[case], RESIDUAL, 7) == {"float32"}
    assert dtypes(casts[case], NORMS, 10) == {"float32"}
    assert dtypes(casts[case], HEAD, 4) == {"float32"}
    parts = 4 if CASES[case]["rows_at_once"] == 5 else 1  # of 16 rows, 5 at once
    assert len(casts[case]["cross_entropy.in"]) == parts


@pytest.mark.parametrize("case", CASES)
def test_on_mps_projections_attention_and_feed_forward_are_in_the_asked_precision(casts: Casts, case: str) -> None:
    low = LOW[case.split(",")[0]]
    assert dtypes(casts[case], PRODUCTS, 24) == {low}
    assert len(casts[case]["attention.q"]) == 4  # 2 blocks in 2 passes


def test_on_mps_only_the_residual_sum_mixes_dtypes_and_it_gives_fp32(casts: Casts) -> None:
    """MPSGraph has aborted on mixed products (nanochat 741), so a new one should be noticed."""
    for case, seen in casts.items():
        mixed = {name: values for name, values in seen.items() if name.startswith("mixed")}
        expected = {} if case == "off" else {"mixed add": ["float32"] * 8}
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

YAML = Path(torch.__file__).parent.parent / "torchgen" / "packaged" / "ATen" / "native" / "native_functions.yaml"
ON_MPS = {
    "MPS",
    "CompositeImplicitAutograd",
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
}
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


class Rows:
    """A source with masked targets, made beforehand: what the data is drawn with never runs on the device."""

    def __init__(self, T: int, V: int) -> None:
        self.x = torch.randint(0, V, (8, T))
        self.y = self.x.roll(-1, 1)
        self.y[:, :3] = IGNORE

    def __len__(self) -> int:
        return len(self.x)

    def draw(self, first: int, count: int) -> Batch:
        return Batch(self.x[:count].clone(), self.y[:count].clone())


AMPS: dict[str, Amp] = {"fp32": nullcontext, "fp16": partial(torch.autocast, "cpu", dtype=torch.float16)}


@pytest.fixture(scope="module", params=AMPS)
def recorded(request: pytest.FixtureRequest) -> Record:
    """A training step and an evaluation on the CPU, by the ways that mps goes: no foreach, attention spelt out."""
    cfg = TrainCfgSchema(B=2, accum_steps=2, activation_checkpointing=True, grad_clip=1e-3)
    torch.manual_seed(0)
    model = GPT(ModelCfg(V=256, T=16, C=16, L=2, H=2, d_ff=32, dropout=0.1), activation_checkpointing=True)
    state = TrainState(model, make_optimizer(model, cfg))
    source, amp, record = Rows(16, 256), AMPS[request.param], Record()
    with (
        mock.patch("niels_gpt.loss.ROWS", 20),
        mock.patch("niels_gpt.model.attention.LONGEST", 0),
        mock.patch("train.train_loop.loss_scale", return_value=64.0),
        mock.patch("torch.nn.utils.clip_grad._has_foreach_support", return_value=False),
        sdpa_kernel(SDPBackend.MATH),
        record,
    ):
        optimizer_step(state, cfg, source, amp, 1e-3)
        evaluate(model, source, 4, cfg.B, amp)
    return record


def test_every_op_of_a_training_step_has_a_kernel_on_mps(recorded: Record) -> None:
    asked = "mm bmm _fused_adamw_ linalg_vector_norm embedding_dense_backward nll_loss_forward mul_.Tensor"
    assert set(asked.split()) <= recorded.ops, "the step no longer does what this test is about"
    assert {op for op in recorded.ops if "foreach" in op} == {"_foreach_add_.Scalar"}  # AdamW counts its steps
    assert not {op for op in recorded.ops if "scaled_dot_product" in op or "rms_norm" in op}
    assert recorded.missing() == set()


def test_the_fused_ops_that_only_mps_takes_without_gradients_have_a_kernel() -> None:
    """The CPU has no part in these: evaluation and sampling on mps go through them."""
    assert has_kernel("_fused_rms_norm") and has_kernel("_scaled_dot_product_attention_math_for_mps")


def test_a_training_step_needs_no_dtype_that_mps_lacks(recorded: Record) -> None:
    assert recorded.too_wide == set()


def test_an_op_without_a_kernel_and_a_float64_are_noticed() -> None:
    """The negative control of the two tests above."""
    with Record() as record:
        torch.linalg.eig(torch.eye(2))
        torch.geqrf(torch.eye(2))
        torch.ones(2) + 1
        torch.ones(2).double()
    assert record.missing() == {"linalg_eig", "geqrf"}
    assert record.too_wide == {"linalg_eig", "_to_copy"}
    assert not has_kernel("no_such_op")


# The bans: what mps ignores, refuses or gets wrong without a word.

FOLDERS = ("niels_gpt", "train", "scripts")
ON_THE_DEVICE = ("niels_gpt/model/", "niels_gpt/loss.py", "train/train_loop.py", "train/optim.py", "train/amp.py")
Rule = Callable[[ast.AST], bool]


def called(node: ast.AST) -> str:
    """What a node reads or imports, as "torch.compile"; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{called(node.value)}.{node.attr}"
    return node.name if isinstance(node, ast.alias) else ""


def keyword(name: str, *allowed: object) -> Rule:
    """Whether a node gives an argument `name`, other than as one of the allowed constants."""

    def found(node: ast.AST) -> bool:
        if not isinstance(node, ast.keyword) or node.arg != name:
            return False
        return not (isinstance(node.value, ast.Constant) and node.value.value in allowed)

    return found


def word(*names: str) -> Rule:
    """Whether a node reads, calls or imports one of the names, or an attribute of that name."""
    return lambda node: bool(set(called(node).split(".")) & set(names))


def cuda(node: ast.AST) -> bool:
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return word("cuda")(node) or re.fullmatch(r"cuda(:\d+)?", text) is not None


def torch_compile(node: ast.AST) -> bool:
    """Whether a node compiles with torch; re.compile is another matter."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "torch" and any(alias.name == "compile" for alias in node.names)
    return isinstance(node, ast.Attribute) and node.attr == "compile" and called(node.value) != "re"


def wide(node: ast.AST) -> bool:
    text = node.value if isinstance(node, ast.Constant) else None
    return word("float64", "double", "complex64", "complex128")(node) or text in ("float64", "double")


def microbatch_loops(tree: ast.AST) -> list[ast.For]:
    """The loops of optimizer_step that go backward."""
    steps = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "optimizer_step"]
    loops = [node for step in steps for node in ast.walk(step) if isinstance(node, ast.For)]
    return [loop for loop in loops if any(word("backward")(node) for node in ast.walk(loop))]


def reads_the_device(node: ast.Call) -> bool:
    """Whether a call waits for the device: .item() and the like, or float(x)."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr in ("item", "tolist", "cpu", "numpy", "synchronize")
    return called(node.func) in ("float", "int", "bool")


BANS: dict[str, Rule] = {
    "non_blocking": keyword("non_blocking", False),  # can read memory that is freed (pytorch 139550)
    "pin_memory": lambda node: word("pin_memory")(node) or keyword("pin_memory")(node),
    "dropout_p": keyword("dropout_p"),  # ignored, later an error (184126)
    "baddbmm": word("baddbmm", "baddbmm_"),  # NaN out of memory that nobody wrote (187521)
    "GradScaler": word("GradScaler"),  # zeroes gradients (184286)
    "cuda": cuda,
    "weights_only": keyword("weights_only", True),  # runs code out of a file
    "torch.compile": torch_compile,  # an early prototype (150121)
}
IN_THE_LOOP, ON_DEVICE = "a read of the device in the microbatch loop", "float64 on the device"


def offences(source: str, path: str) -> Iterator[str]:
    """Yield "BAN PATH:LINE" for what is banned in a file's source."""
    tree = ast.parse(source)
    rules = {**BANS, ON_DEVICE: wide} if path.startswith(ON_THE_DEVICE) else BANS
    for node in ast.walk(tree):
        found = (ban for ban, is_broken in rules.items() if is_broken(node))
        yield from (f"{ban} {path}:{getattr(node, 'lineno', 0)}" for ban in found)
    for loop in microbatch_loops(tree):
        calls = (node for node in ast.walk(loop) if isinstance(node, ast.Call))
        yield from (f"{IN_THE_LOOP} {path}:{call.lineno}" for call in calls if reads_the_device(call))


def sources() -> dict[str, str]:
    files = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


def test_nothing_that_mps_gets_wrong_without_a_word_is_used() -> None:
    files = sources()
    assert {"niels_gpt/model/gpt.py", "train/train_loop.py", "scripts/train.py"} <= files.keys()
    found = [offence for path, source in files.items() for offence in offences(source, path)]
    compiling = ("torch.compile niels_gpt/model/gpt.py:", "torch.compile train/model.py:")
    assert [offence for offence in found if not offence.startswith(compiling)] == []
    assert not compile_active(torch.device("mps"), TrainCfgSchema(compile=True)), "what compiles is for the CPU"


def test_the_microbatch_loop_that_is_watched_is_there() -> None:
    assert len(microbatch_loops(ast.parse(sources()["train/train_loop.py"]))) == 1


LOOP = "def optimizer_step():\n    for x in y:\n        loss = f(x)\n        loss.backward()\n        "
BANNED = [
    ("non_blocking", "x.to(device, non_blocking=True)"),
    ("non_blocking", "x.to(device, non_blocking=fast)"),
    ("pin_memory", "x.pin_memory()"),
    ("pin_memory", "DataLoader(x, pin_memory=True)"),
    ("dropout_p", "F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)"),
    ("baddbmm", "torch.baddbmm(a, b, c, beta=0)"),
    ("baddbmm", "a.baddbmm_(b, c)"),
    ("GradScaler", "from torch.amp import GradScaler"),
    ("GradScaler", "scaler = torch.amp.GradScaler('mps')"),
    ("cuda", "x.to('cuda')"),
    ("cuda", "device = 'cuda:0'"),
    ("cuda", "torch.cuda.is_available()"),
    ("cuda", "import torch.cuda"),
    ("weights_only", "torch.load(path, weights_only=False)"),
    ("torch.compile", "model = torch.compile(model)"),
    ("torch.compile", "@torch.compile\ndef f(): pass"),
    ("torch.compile", "from torch import compile"),
    ("torch.compile", "model.compile()"),
    (ON_DEVICE, "x = x.to(torch.float64)"),
    (ON_DEVICE, "x = x.double()"),
    (IN_THE_LOOP, LOOP + "total += loss.item()"),
    (IN_THE_LOOP, LOOP + "total += float(loss)"),
    (IN_THE_LOOP, LOOP + "losses.append(loss.detach().cpu())"),
]
ALLOWED = [
    "x.to(device, non_blocking=False)",
    "torch.load(path, weights_only=True)",
    "re.compile('cuda is not here')",
    "'never on cuda, nor with non_blocking=True'",
    "x = x.to(torch.float32)",
    LOOP + "total += loss.detach()\n    return total.item()",
]


@pytest.mark.parametrize(("ban", "source"), BANNED)
def test_each_ban_notices_its_offender(ban: str, source: str) -> None:
    """The negative controls; and no ban is without one."""
    assert {offence.split(" train/")[0] for offence in offences(source, "train/optim.py")} == {ban}
    assert {name for name, _ in BANNED} == {*BANS, ON_DEVICE, IN_THE_LOOP}


@pytest.mark.parametrize("source", ALLOWED)
def test_the_bans_let_pass_what_is_right(source: str) -> None:
    assert list(offences(source, "train/optim.py")) == []


def test_float64_is_allowed_where_only_the_cpu_counts() -> None:
    assert list(offences("torch.zeros(2, dtype=torch.float64)", "train/evaluate.py")) == []
