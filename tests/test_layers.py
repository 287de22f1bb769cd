"""The layering of the design, proven from the imports."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

LAYERS = [
    ["niels_gpt.printable", "niels_gpt.durable", "niels_gpt.interruptible"],
    ["niels_gpt.writing"],
    [
        "niels_gpt.errors",
        "niels_gpt.seeds",
        "niels_gpt.plain",
        "niels_gpt.data.building",
        "niels_gpt.data.hash_index",
    ],
    [
        "niels_gpt.config",
        "niels_gpt.loss",
        "niels_gpt.device",
        "niels_gpt.tokenizer",
        "niels_gpt.data.records",
        "niels_gpt.model.attention",
        "niels_gpt.data.meta",
    ],
    ["niels_gpt.data.pydocs_dialogues", "niels_gpt.data.synthetic", "niels_gpt.data.files"],
    ["niels_gpt.data.pydocs_files", "niels_gpt.data.pydocs_comments"],
    ["niels_gpt.data.pydocs_parsed"],
    ["niels_gpt.data.pydocs_compiled"],
    ["niels_gpt.data.pydocs"],
    ["niels_gpt.chat", "niels_gpt.data.sources", "niels_gpt.model.blocks", "niels_gpt.model.replay"],
    ["niels_gpt.data.cache", "niels_gpt.model.gpt"],
    ["niels_gpt.data.batches", "niels_gpt.shapes"],
    ["niels_gpt.weights", "niels_gpt.generate"],
    ["niels_gpt.speaker"],
    [
        "train.step_files",
        "train.known",
        "train.text_table",
        "train.muon",
        "train.console",
        "train.report_file",
        "train.disk",
    ],
    ["train.problems", "train.fit", "train.atomic"],
    ["train.schema", "train.metrics", "train.budget", "train.nonfinite"],
    ["train.choices"],
    ["train.config"],
    [
        "train.legacy",
        "train.structured",
        "train.overrides",
        "train.result",
        "train.stop",
        "train.lifeline",
        "train.amp",
        "train.optim",
    ],
    [
        "train.ask",
        "train.legacy_experiment",
        "train.folder",
        "train.leftovers",
        "train.memory",
        "train.model",
        "train.cpu",
        "train.sweep.job",
        "train.sweep.curve",
        "train.sweep.svg",
    ],
    ["train.sweep.plan", "train.sweep.process"],
    ["train.sweep.engine"],
    ["train.sweep.row"],  # the report of a sweep reads the disk only
    ["train.sweep.findings", "train.sweep.splits", "train.sweep.objective"],
    ["train.sweep.pens", "train.sweep.table"],
    ["train.sweep.figures"],
    ["train.sweep.page"],
    ["train.sweep.report"],
    ["train.sweep.compare", "train.sweep.run", "train.sweep.here"],
    ["train.checkpointing", "train.evaluate", "train.sample", "train.cli", "train.preflight"],
    ["train.gate", "train.sources", "train.bench.options"],
    ["train.pretrain", "train.sft"],
    ["train.report", "train.resuming", "train.startup"],
    ["train.train_loop"],
    ["train.live_bytes"],
    ["train.step_cost"],
    ["train.batch_probe", "train.doctor_text"],
    ["train.batch_search"],
    ["train.auto_batch"],
    ["train.run"],
    ["train.numerics", "train.doctor", "train.bench.shapes"],
    ["train.bench.contestants"],
    ["train.bench.race"],
    ["train.bench.racer", "train.bench.grow", "train.bench.overhead"],
]
FILES = sorted([*ROOT.glob("niels_gpt/**/*.py"), *ROOT.glob("train/**/*.py")])
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "__init__.py"], ids=module_of)
def test_each_file_imports_only_from_the_lines_above(path: Path) -> None:
    module = module_of(path)
    assert module in LEVEL, f"{module} has no place in the layering"
    for imported in imports_of(path) & LEVEL.keys():
        assert LEVEL[imported] < LEVEL[module], f"{module} imports {imported}"


def test_the_library_knows_nothing_of_hydra_or_of_runs() -> None:
    for path in ROOT.glob("niels_gpt/**/*.py"):
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert not roots & {"hydra", "omegaconf", "train", "scripts"}, path


def test_hydra_ends_at_the_gate() -> None:
    gate = {
        "train.config",
        "train.structured",
        "train.overrides",
        "train.sweep.plan",
        "train.sweep.engine",
        "train.gate",
    }
    for path in ROOT.glob("train/**/*.py"):
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert module_of(path) in gate or not roots & {"hydra", "omegaconf"}, path


def test_every_file_opens_with_the_sentence_that_says_what_lives_in_it() -> None:
    for path in [*FILES, *ROOT.glob("scripts/*.py")]:
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
        assert first and first[0].endswith((".", ":")), path


def test_there_is_one_training_loop() -> None:
    others = {"contestants.py", "overhead.py"}  # of the benchmark: what ours is raced against, a state to save
    updating = [path for path in FILES if "optimizer.step()" in path.read_text(encoding="utf-8")]
    updating = [path for path in updating if path.name not in others]
    assert [path.name for path in updating] == ["train_loop.py"]
