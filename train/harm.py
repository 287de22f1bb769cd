"""What Hydra's own section of a config may not say, whoever wrote it: what to run, read or write of others."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, OmegaConf

PRESETS = Path(__file__).resolve().parent.parent / "conf" / "hydra"
# Whole names: from a module one could go on to all that it imports.
TARGETS = re.compile(
    r"train\.gate\.Gate|hydra_plugins\.\w+\.\w+\.\w+(Launcher|Sweeper)"
    r"|hydra\._internal\.core_plugins\.\w+\.Basic(Launcher|Sweeper)|optuna\.samplers\.\w+Sampler"
)
CODE = ("_target_", "custom_search_space")  # keys whose value is something to call
HANDLERS = {
    "logging.FileHandler",
    "logging.StreamHandler",
    "logging.NullHandler",
    "train.console.ConsoleHandler",
    "train.console.LogFile",
}
STREAMS = {"ext://sys.stdout", "ext://sys.stderr"}
VARIABLES = re.compile(r"OMP_NUM_THREADS|MKL_NUM_THREADS|TOKENIZERS_PARALLELISM|PYTORCH_MPS_\w+")
NAME = re.compile(r"\.?[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
# Commands and flags that an engine passes on, where it connects to, and where it keeps files of its own.
RESERVED = re.compile(
    r"hydra\.(launcher\.(setup|teardown|srun_args|additional_parameters|submitit_folder|temp_folder"
    r"|ray\..*(address|runtime_env|_temp_dir))|sweeper\.storage)(\..*)?"
)
SUBMITIT = ("hydra.launcher.submitit_folder", "${hydra.sweep.dir}/.submitit/%j")  # as the plugin has it
SECTIONS = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")  # of which objects are made
Leaf = tuple[str, str, Any]  # dotted path, last part of it, value
Harm = tuple[str, Any, str]  # setting, value, why it is refused


def harm(hydra: DictConfig, overrides: Sequence[str]) -> Iterator[Harm]:
    """Yield what is to be refused of a section that was composed with `overrides`, which the user has given."""
    plain = OmegaConf.to_container(hydra, resolve=False)
    for path, key, value in _leaves(plain, "hydra"):
        names_code = key in CODE and value is not None and not TARGETS.fullmatch(str(value))
        if names_code or (str(value).startswith("ext://") and value not in STREAMS):
            yield path, value, "a config names no code to run"
        elif path.startswith(("hydra.job_logging", "hydra.hydra_logging")):
            yield from _harm_of_logging(path, key, value)
        elif RESERVED.fullmatch(path) and not (_as_shipped(path, value) or _given(path, overrides)):
            yield path, value, "it is set on the command line alone, by its full name"
    for section in SECTIONS:
        yield from _borrowed(hydra, section, f"hydra.{section}")
    yield from _harm_of_job(plain)
    yield from _harm_of_launcher(hydra)
    yield from _harm_of_record(plain, overrides)


def _harm_of_logging(path: str, key: str, value: Any) -> Iterator[Harm]:
    if key == "()" or (key in ("class", "validate") and str(value) not in HANDLERS):
        yield path, value, f"only {', '.join(sorted(HANDLERS))}"
    if key == "filename" and not re.fullmatch(r"\$\{hydra\.runtime\.output_dir\}/[^/]+", str(value)):
        yield path, value, "a log stands in the run folder"


def _borrowed(parent: DictConfig | ListConfig, key: Any, path: str) -> Iterator[Harm]:
    """Yield what is, or may become, the name of a whole section elsewhere: there it would not be looked at."""
    node: Any = parent._get_node(key)
    if node is None or node._is_none() or node._is_missing():
        return
    if node._is_interpolation():
        found = node._maybe_dereference_node()
        whole = str(node._value()).endswith("}")  # else it is text, whatever is filled in
        if whole and (found is None or isinstance(found, Container)):
            yield path, node._value(), "what it takes from elsewhere has to be a value"
    elif isinstance(node, DictConfig | ListConfig):
        names: Any = node if isinstance(node, DictConfig) else range(len(node))
        for name in names:
            yield from _borrowed(node, name, f"{path}.{name}")


def _harm_of_job(plain: Any) -> Iterator[Harm]:
    for name in plain["job"]["env_set"]:
        if not VARIABLES.fullmatch(name):
            yield f"hydra.job.env_set.{name}", "...", "set it in the shell"  # what it is set to may be secret
    if plain["job"]["env_copy"]:
        yield "hydra.job.env_copy", plain["job"]["env_copy"], "it would be written into the run's files"
    for path, value in (("job.name", plain["job"]["name"]), ("output_subdir", plain["output_subdir"])):
        if value is not None and value != "???" and not NAME.fullmatch(str(value)):
            yield f"hydra.{path}", value, "only a name, of letters, digits, '.', '_' and '-'"


def _harm_of_launcher(hydra: DictConfig) -> Iterator[Harm]:
    """Yield what would end a line of the script that an engine writes: what follows would be a command."""
    launcher = hydra._get_node("launcher")
    if isinstance(launcher, DictConfig):
        for path, _, value in _leaves(OmegaConf.to_container(launcher, resolve=True), "hydra.launcher"):
            if not (path + str(value)).isprintable():
                yield path, value, "only characters that can be seen"


def _harm_of_record(plain: Any, overrides: Sequence[str]) -> Iterator[Harm]:
    """Yield overrides that nobody gave: a sweep would compose its jobs with them."""
    for words in plain["overrides"].values():
        for word in words or ():
            if word not in overrides:
                yield "hydra.overrides", word, "Hydra writes down there what the command line says"


def _given(path: str, overrides: Sequence[str]) -> bool:
    """Return whether the command line says what stands at `path`; of a list, the whole."""
    keys = (word.partition("=")[0].lstrip("+~") for word in overrides)
    return any(path == key or re.fullmatch(rf"{re.escape(key)}\.\d+", path) for key in keys)


def _as_shipped(path: str, value: Any) -> bool:
    return value in (None, [], {}) or (path, value) in _shipped()


@cache
def _shipped() -> set[tuple[str, Any]]:
    """Return the settings of this project's own engines, with their values."""
    presets = [
        ("launcher/slurm", "hydra.launcher"),
        ("launcher/ray_local", "hydra.launcher"),
        ("sweeper/search", "hydra"),
    ]
    found = {SUBMITIT}
    for preset, package in presets:
        tree = OmegaConf.to_container(OmegaConf.load(PRESETS / f"{preset}.yaml"), resolve=False)
        found |= {(path, value) for path, _, value in _leaves(tree, package)}
    return found


def _leaves(tree: Any, path: str, key: str = "") -> Iterator[Leaf]:
    """Yield the values of a nested config with their dotted paths; what is empty is a value too."""
    if isinstance(tree, dict | list) and tree:
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, f"{path}.{name}", str(name))
    else:
        yield path, key, tree
