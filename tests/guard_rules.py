"""The static guards: what the source may not do, each a rule about one node of its syntax tree."""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Rule = Callable[[ast.AST], bool]
LIBRARY = ("niels_gpt/", "train/", "hydra_plugins/")


@dataclass(frozen=True)
class Guard:
    """A ban: the rule that finds an offender, and the folders in which it holds."""

    rule: Rule
    where: tuple[str, ...] = ("",)


def names(node: ast.AST) -> str:
    """What a node reads or imports, as "torch.compile"; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{names(node.value)}.{node.attr}"
    if isinstance(node, ast.ImportFrom):
        return node.module or ""
    return node.name if isinstance(node, ast.alias) else ""


def constant(node: ast.AST | None) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


def word(*banned: str) -> Rule:
    """Whether a node reads, calls or imports one of the names, or an attribute of that name."""
    return lambda node: bool(set(names(node).split(".")) & set(banned))


def dotted(*banned: str) -> Rule:
    """Whether a node reads one of the dotted names, or imports it: "os.system", `from os import system`."""

    def found(node: ast.AST) -> bool:
        if isinstance(node, ast.ImportFrom):
            return bool({f"{node.module}.{alias.name}" for alias in node.names} & set(banned))
        return isinstance(node, ast.Attribute) and names(node) in banned

    return found


def builtin(*banned: str) -> Rule:
    """Whether a node reads a built-in function; a method or a field of that name is another matter."""

    def found(node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id in banned and isinstance(node.ctx, ast.Load)
        return isinstance(node, ast.Attribute) and names(node) in {f"builtins.{name}" for name in banned}

    return found


def module(*banned: str) -> Rule:
    """Whether a node imports one of the modules."""

    def found(node: ast.AST) -> bool:
        if isinstance(node, ast.Import):
            return any(alias.name.split(".")[0] in banned for alias in node.names)
        return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in banned

    return found


def keyword(name: str, *allowed: object) -> Rule:
    """Whether a node gives an argument `name`, other than as one of the allowed constants."""

    def found(node: ast.AST) -> bool:
        if not isinstance(node, ast.keyword) or node.arg != name:
            return False
        return not (isinstance(node.value, ast.Constant) and node.value.value in allowed)

    return found


def either(*rules: Rule) -> Rule:
    return lambda node: any(rule(node) for rule in rules)


def text(pattern: str) -> Rule:
    """Whether a node is a string that matches as a whole."""
    return lambda node: isinstance(constant(node), str) and re.fullmatch(pattern, constant(node)) is not None


def loads_without_saying_how(node: ast.AST) -> bool:
    """Whether a node loads with torch, but does not write weights_only=True out."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "torch" and any(alias.name == "load" for alias in node.names)
    said = {word.arg: constant(word.value) for word in node.keywords} if isinstance(node, ast.Call) else {}
    return isinstance(node, ast.Call) and names(node.func) == "torch.load" and said.get("weights_only") is not True


def yaml_with_objects(node: ast.AST) -> bool:
    """Whether a node reads YAML by other than the safe loader."""
    safe = {"safe_load", "safe_dump", "YAMLError", "SafeLoader"}
    if isinstance(node, ast.ImportFrom):
        return node.module == "yaml" and any(alias.name not in safe for alias in node.names)
    return isinstance(node, ast.Attribute) and names(node.value) == "yaml" and node.attr not in safe


def torch_compile(node: ast.AST) -> bool:
    """Whether a node compiles with torch; re.compile is another matter."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "torch" and any(alias.name == "compile" for alias in node.names)
    return isinstance(node, ast.Attribute) and node.attr == "compile" and names(node.value) != "re"


def changes_torch(node: ast.AST) -> bool:
    """Whether a node sets one of torch's global switches."""
    if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any("torch.backends" in names(target) for target in targets)
    called = (
        isinstance(node, ast.Call) and names(node.func) == "setattr" and "torch.backends" in names(node.args[0])
    )
    switches = "set_default_dtype set_default_device set_default_tensor_type set_float32_matmul_precision"
    return called or word(*switches.split(), "use_deterministic_algorithms", "set_flush_denormal")(node)


SHELL = "os.system os.popen subprocess.getoutput subprocess.getstatusoutput pty.spawn"
PICKLES = "pickle cPickle _pickle pickletools marshal shelve dill cloudpickle"
WORKERS = "DataLoader num_workers multiprocessing fork forkpty ProcessPoolExecutor"
GUARDS: dict[str, Guard] = {
    # What runs code out of a file that someone else has made.
    "torch.load": Guard(either(keyword("weights_only", True), loads_without_saying_how)),
    "safe globals": Guard(word("add_safe_globals", "safe_globals")),
    "pickle": Guard(either(module(*PICKLES.split()), keyword("pickle_module"), keyword("allow_pickle", False))),
    "eval": Guard(builtin("eval", "exec", "compile")),
    "import by name": Guard(either(builtin("__import__"), word("import_module", "run_module", "run_path"))),
    "shell": Guard(either(keyword("shell", False), dotted(*SHELL.split()))),
    "instantiate": Guard(word("instantiate", "get_class", "get_method", "get_object")),
    "_target_": Guard(either(word("_target_"), keyword("_target_"), text("_target_"))),
    "yaml": Guard(yaml_with_objects),
    # What mps ignores, refuses or gets wrong without a word.
    "non_blocking": Guard(keyword("non_blocking", False)),  # can read memory that is freed (pytorch 139550)
    "pin_memory": Guard(either(word("pin_memory"), keyword("pin_memory"))),
    "dropout_p": Guard(keyword("dropout_p")),  # ignored, later an error (184126)
    "baddbmm": Guard(word("baddbmm", "baddbmm_")),  # NaN out of memory that nobody wrote (187521)
    "GradScaler": Guard(word("GradScaler")),  # zeroes gradients (184286)
    "cuda": Guard(either(word("cuda"), text(r"cuda(:\d+)?"))),
    "torch.compile": Guard(torch_compile),  # an early prototype (150121)
    "float64": Guard(either(word("float64", "double", "complex64", "complex128"), text("float64|double"))),
    # What does not mix with mps, or leaks from one run into the next.
    "workers": Guard(either(word(*WORKERS.split()), keyword("num_workers")), LIBRARY),
    "torch's switches": Guard(changes_torch),
}
IN_THE_LOOP, UNBOUNDED = "a read of the device in the microbatch loop", "a read without a limit"


def microbatch_loops(tree: ast.AST) -> list[ast.For]:
    """The loops of optimizer_step that go backward."""
    steps = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "optimizer_step"]
    loops = [node for step in steps for node in ast.walk(step) if isinstance(node, ast.For)]
    return [loop for loop in loops if any(word("backward")(node) for node in ast.walk(loop))]


def reads_the_device(node: ast.AST) -> bool:
    """Whether a node waits for the device: .item() and the like, or float(x)."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return node.func.attr in ("item", "tolist", "cpu", "numpy", "synchronize")
    return names(node.func) in ("float", "int", "bool")


def parses(node: ast.AST) -> bool:
    """Whether a node takes JSON or YAML apart."""
    return names(node) in ("json.load", "json.loads", "yaml.safe_load") or word("model_validate_json")(node)


def reads_all(node: ast.AST) -> bool:
    """Whether a node reads a file to its end, however long that is."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    whole = node.func.attr == "read" and not node.args and not node.keywords
    return (
        whole
        or node.func.attr in ("read_text", "read_bytes", "readlines", "readall")
        or names(node.func) == "json.load"
    )


def offences(source: str, path: str) -> Iterator[tuple[str, int]]:
    """Yield what is banned in a file's source, with its line."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    for name, guard in GUARDS.items():
        if path.startswith(guard.where):
            yield from ((name, getattr(node, "lineno", 0)) for node in nodes if guard.rule(node))
    for loop in microbatch_loops(tree):
        yield from ((IN_THE_LOOP, getattr(n, "lineno", 0)) for n in ast.walk(loop) if reads_the_device(n))
    if any(map(parses, nodes)):
        yield from ((UNBOUNDED, getattr(node, "lineno", 0)) for node in nodes if reads_all(node))
