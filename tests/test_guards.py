"""What the source may not do, told from its syntax: each guard, its exceptions, and what it has to notice."""

import ast
from functools import cache

import pytest
import torch
import yaml
from conftest import CONF, ROOT
from guard_rules import GUARDS, IN_THE_LOOP, UNBOUNDED, microbatch_loops, offences

from train.model import compile_active
from train.schema import TrainCfgSchema

FOLDERS = ("niels_gpt", "train", "scripts", "hydra_plugins", "conf")
PARENT = "the one that asks is the process that started this one"
OWN = "a file that the project ships or has just made"
EXCEPTIONS = {
    ("import by name", "niels_gpt/data/pydocs.py"): "pydoc_data.topics, a name written there",
    ("import by name", "niels_gpt/data/pydocs_compiled.py"): "a list of the standard library's, written there",
    ("_target_", "hydra_plugins/isolated/launcher.py"): "how Hydra knows the default launcher, written there",
    ("_target_", "train/sweep/plan.py"): "compared with, to tell which sweeper was chosen; nothing is made of it",
    ("torch.compile", "niels_gpt/model/gpt.py"): "asked for by make_model, on the CPU alone",
    ("baddbmm", "niels_gpt/model/attention.py"): "on the CPU alone, onto zeros or sums",
    ("torch.compile", "train/model.py"): "tries whether there is a compiler; on the CPU alone",
    ("float64", "train/evaluate.py"): "the yardstick counts bytes and targets on the CPU",
    ("float64", "train/numerics.py"): "compares gradients that were brought to the CPU",
    (UNBOUNDED, "train/bench/racer.py"): PARENT,
    (UNBOUNDED, "train/batch_probe.py"): PARENT,
    (UNBOUNDED, "scripts/faults.py"): OWN,
    (UNBOUNDED, "train/metrics.py"): "as long as the run was, of which its own folder tells",
    ("_target_", "train/harm.py"): "compared with, to refuse it",
    ("torch's switches", "train/cpu.py"): "the one place that chooses what multiplies float32 on the CPU",
    ("torch.compile", "train/bench/contestants.py"): "of the benchmark, which is for the CPU",
    ("yaml", "train/plain_yaml.py"): "looks at tokens and nodes of YAML before anything is made of them",
}


def sources() -> dict[str, str]:
    files = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


@cache
def found() -> dict[tuple[str, str], list[int]]:
    """The lines of each ban in each file."""
    lines: dict[tuple[str, str], list[int]] = {}
    for path, source in sources().items():
        for ban, line in offences(source, path):
            lines.setdefault((ban, path), []).append(line)
    return lines


def test_the_source_does_nothing_that_is_banned() -> None:
    files = sources()
    assert {"niels_gpt/model/gpt.py", "train/train_loop.py", "scripts/train.py"} <= files.keys()
    assert {key: lines for key, lines in found().items() if key not in EXCEPTIONS} == {}


def test_no_exception_outlives_its_reason() -> None:
    assert [key for key in EXCEPTIONS if key not in found()] == []


def test_what_compiles_is_for_the_cpu() -> None:
    assert not compile_active(torch.device("mps"), TrainCfgSchema(compile=True))


def test_the_microbatch_loop_that_is_watched_is_there() -> None:
    assert len(microbatch_loops(ast.parse(sources()["train/train_loop.py"]))) == 1


def test_in_conf_only_hydras_own_part_names_what_to_make() -> None:
    """One callback; a launcher or sweeper of ours would be another matter, but Hydra's are named by Hydra."""

    def keys(value: object, path: str = "") -> list[str]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [f"{path}.{key}" for key, _ in items] + [deep for k, v in items for deep in keys(v, f"{path}.{k}")]

    files = sorted(CONF.rglob("*.yaml"))
    named = [
        f"{file.relative_to(CONF)}{key}"
        for file in files
        for key in keys(yaml.safe_load(file.read_text(encoding="utf-8")))
        if key.endswith("._target_")
    ]
    assert len(files) > 20 and named == ["config.yaml.hydra.callbacks.gate._target_"]


LOOP = "def optimizer_step():\n    for x in y:\n        loss = f(x)\n        loss.backward()\n        "
BANNED = [
    ("torch.load", "torch.load(path, weights_only=False)"),
    ("torch.load", "torch.load(path, weights_only=trusted)"),
    ("torch.load", "torch.load(path)"),
    ("torch.load", "torch.load(path, weights_only=None)"),
    ("torch.load", "torch.load(path, **options)"),
    ("torch.load", "from torch import load"),
    ("safe globals", "torch.serialization.add_safe_globals([Thing])"),
    ("safe globals", "from torch.serialization import safe_globals"),
    ("pickle", "import pickle"),
    ("pickle", "import os, marshal as m"),
    ("pickle", "from shelve import open"),
    ("pickle", "from dill import loads"),
    ("pickle", "torch.save(x, path, pickle_module=m)"),
    ("pickle", "numpy.load(path, allow_pickle=True)"),
    ("eval", "eval(text)"),
    ("eval", "run = exec"),
    ("eval", "builtins.eval(text)"),
    ("eval", "compile(text, 'name', 'exec')"),
    ("import by name", "importlib.import_module(name)"),
    ("import by name", "from importlib import import_module"),
    ("import by name", "__import__(name)"),
    ("import by name", "runpy.run_path(name)"),
    ("shell", "subprocess.run(text, shell=True)"),
    ("shell", "subprocess.run(text, shell=wanted)"),
    ("shell", "os.system(text)"),
    ("shell", "from os import popen"),
    ("instantiate", "hydra.utils.instantiate(cfg)"),
    ("instantiate", "from hydra.utils import get_method"),
    ("_target_", "cfg['_target_']"),
    ("_target_", "cfg._target_"),
    ("_target_", "dict(_target_=name)"),
    ("yaml", "yaml.load(text, Loader)"),
    ("yaml", "yaml.unsafe_load(text)"),
    ("yaml", "yaml.full_load(text)"),
    ("yaml", "from yaml import load"),
    ("non_blocking", "x.to(device, non_blocking=True)"),
    ("non_blocking", "x.to(device, non_blocking=fast)"),
    ("pin_memory", "x.pin_memory()"),
    ("pin_memory", "f(x, pin_memory=True)"),
    ("dropout_p", "F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)"),
    ("baddbmm", "torch.baddbmm(a, b, c, beta=0)"),
    ("baddbmm", "a.baddbmm_(b, c)"),
    ("GradScaler", "from torch.amp import GradScaler"),
    ("GradScaler", "scaler = torch.amp.GradScaler('mps')"),
    ("cuda", "x.to('cuda')"),
    ("cuda", "device = 'cuda:0'"),
    ("cuda", "torch.cuda.is_available()"),
    ("cuda", "import torch.cuda"),
    ("torch.compile", "model = torch.compile(model)"),
    ("torch.compile", "@torch.compile\ndef f(): pass"),
    ("torch.compile", "from torch import compile"),
    ("torch.compile", "model.compile()"),
    ("float64", "x = x.to(torch.float64)"),
    ("float64", "x = x.double()"),
    ("float64", "x = x.astype('float64')"),
    ("workers", "from torch.utils.data import DataLoader"),
    ("workers", "f(x, num_workers=2)"),
    ("workers", "import multiprocessing.pool"),
    ("workers", "if os.fork() == 0: pass"),
    ("workers", "concurrent.futures.ProcessPoolExecutor(2)"),
    ("torch's switches", "torch.backends.mkldnn.enabled = False"),
    ("torch's switches", "setattr(torch.backends.mkldnn, 'enabled', False)"),
    ("torch's switches", "torch.set_default_dtype(torch.float16)"),
    ("torch's switches", "torch.set_float32_matmul_precision('medium')"),
    (IN_THE_LOOP, LOOP + "total += loss.item()"),
    (IN_THE_LOOP, LOOP + "total += float(loss)"),
    (IN_THE_LOOP, LOOP + "losses.append(loss.detach().cpu())"),
    (UNBOUNDED, "json.loads(path.read_text())"),
    (UNBOUNDED, "json.load(file)"),
    (UNBOUNDED, "text = file.read()\nyaml.safe_load(text)"),
    (UNBOUNDED, "for line in path.read_bytes().splitlines(): json.loads(line)"),
    (UNBOUNDED, "Cfg.model_validate_json(path.read_text())"),
]
ALLOWED = [
    "torch.load(path, weights_only=True)",
    "model.eval()",
    "class Cfg:\n    compile: bool = False",
    "re.compile('cuda is not here')",
    "'never on cuda, nor with non_blocking=True'",
    "subprocess.run([python, script], shell=False)",
    "yaml.safe_load(read_at_most(path, 1_000_000))",
    "x.to(device, non_blocking=False)",
    "x = x.to(torch.float32)",
    "torch.backends.mps.is_available()",
    "path.read_text()",
    "json.loads(file.read(1_000_000))",
    LOOP + "total += loss.detach()\n    return total.item()",
]


@pytest.mark.parametrize(("ban", "source"), BANNED)
def test_each_guard_notices_its_offender(ban: str, source: str) -> None:
    """The negative controls."""
    assert {name for name, _ in offences(source, "train/anything.py")} == {ban}


def test_no_guard_is_without_an_offender() -> None:
    assert {name for name, _ in BANNED} == {*GUARDS, IN_THE_LOOP, UNBOUNDED}


@pytest.mark.parametrize("source", ALLOWED)
def test_the_guards_let_pass_what_is_right(source: str) -> None:
    assert list(offences(source, "train/anything.py")) == []


def test_only_the_library_starts_no_workers() -> None:
    assert list(offences("import multiprocessing", "scripts/anything.py")) == []
