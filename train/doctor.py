"""Looks a machine over: what it is, whether it computes rightly, what a step takes with each precision and memory.

N is the number of tokens in a microbatch; other letters are ModelCfg's.
"""

import gc
import json
import os
import platform
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from niels_gpt.config import ModelCfg
from niels_gpt.data.batches import Batch
from niels_gpt.device import resolve_device
from niels_gpt.errors import ConfigError, NielsError
from niels_gpt.model.gpt import GPT, LOGITS_AT_ONCE
from niels_gpt.seeds import derived_seed
from train.amp import DTYPES, Amp, amp_factory
from train.checkpointing import TrainState
from train.config import RunCfg, TrainCfgSchema
from train.memory import is_out_of_memory
from train.optim import lr_at, make_optimizer
from train.preflight import known_fault, problems, torch_version
from train.train_loop import optimizer_step

PRECISIONS = ("fp16", "bf16", "off")
MIB = 2**20
FLOAT = 4  # bytes
Say = Callable[[str], None]


@dataclass(frozen=True)
class Verdict:
    """What preflight said of a precision; nothing wrong is an empty tuple."""

    precision: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """What an optimizer step takes: median seconds, and bytes above the weights and the optimizer's state.

    `theory` is for float32 and fused attention. `driver` is all that the Metal driver held at the highest,
    weights included, None on the CPU. `trouble` says why there is no measurement.
    """

    precision: str
    memory: str
    theory: int
    seconds: float | None = None
    tokens_per_second: float | None = None
    peak: int | None = None
    driver: int | None = None
    trouble: str = ""


def examine(cfg: RunCfg, steps: int, say: Say) -> dict[str, Any]:
    """Tell, piece by piece, what this machine is and does with the model and batch of `cfg`; return it for JSON.

    Raises:
        ConfigError: the asked device is not there.
    """
    device = resolve_device(cfg.device)
    facts = machine(device)
    say(table([*((name, str(value)) for name, value in facts.items()), ("step", settings(cfg))]))
    verdicts = [Verdict(name, tuple(problems(device, *_probe(device, name)))) for name in PRECISIONS]
    say(verdict_table(device, verdicts))
    costs = [measured(device, variant, steps) for variant in variants(device, cfg)]
    say(cost_table(costs))
    notes = unchecked(device, cfg)
    say("\n".join(f"not checked: {note}" for note in notes))
    return {
        "machine": facts,
        "preflight": [asdict(verdict) for verdict in verdicts],
        "costs": [asdict(cost) for cost in costs],
        "saving": savings(costs),
        "unchecked": notes,
        "settings": {"model": cfg.model.model_dump(), "train": cfg.train.model_dump(), "timed_steps": steps},
    }


def machine(device: torch.device) -> dict[str, str | int]:
    """Return what there is: platform, chip, memory, versions, and on mps what Metal gives and holds."""
    facts: dict[str, str | int] = {
        "platform": platform.platform(),
        "chip": chip(),
        "cores": os.cpu_count() or 1,
        "memory": f"{memory() / 2**30:.1f} GiB",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "macOS": platform.mac_ver()[0] or "none",
        "mps": "available" if torch.backends.mps.is_available() else "none",
        "device": device.type,
    }
    if torch.backends.mps.is_available():
        recommended, held = torch.mps.recommended_max_memory(), torch.mps.driver_allocated_memory()
        facts["mps memory"] = f"{mib(recommended)} MiB recommended, {mib(held)} MiB allocated"
    return facts


def chip() -> str:
    """Return the processor's name, or its architecture where the system does not say."""
    if sys.platform == "darwin":
        return sysctl("machdep.cpu.brand_string") or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def memory() -> int:
    """Return the bytes of memory in the machine."""
    if sys.platform == "darwin":
        return int(sysctl("hw.memsize") or 0)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def sysctl(name: str) -> str:
    """Return what macOS says of itself under a name."""
    return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True).stdout.strip()


def settings(cfg: RunCfg) -> str:
    """Return the shapes of the measured step."""
    m, t = cfg.model, cfg.train
    return f"V={m.V} T={m.T} C={m.C} L={m.L} H={m.H} d_ff={m.d_ff} B={t.B} accum_steps={t.accum_steps}"


def _probe(device: torch.device, precision: str) -> tuple[Amp, torch.dtype]:
    """Return the autocast that preflight tries, and the dtype that it should compute in."""
    if precision == "off":
        return nullcontext, torch.float32
    return partial(torch.autocast, device.type, dtype=DTYPES[precision]), DTYPES[precision]


def variants(device: torch.device, cfg: RunCfg) -> Iterator[RunCfg]:
    """Yield `cfg` with each precision and memory; on the CPU all precisions are the same program."""
    for precision in PRECISIONS if device.type == "mps" else ("off",):
        amp = {"amp": False} if precision == "off" else {"amp": True, "amp_dtype": precision}
        for ckpt in (False, True):
            chosen = amp | {"loss_scaling": False, "activation_checkpointing": ckpt}
            train = cfg.train.model_copy(update=chosen)
            yield cfg.model_copy(update={"train": train})


def measured(device: torch.device, cfg: RunCfg, steps: int) -> Cost:
    """Measure a variant; what goes wrong is part of the answer."""
    train = cfg.train
    memory = "ckpt" if train.activation_checkpointing else "off"
    cost = Cost(train.amp_dtype if train.amp else "off", memory, theory(cfg.model, train))
    if device.type == "mps" and (fault := known_fault(cfg, torch_version())):
        return replace(cost, trouble=". ".join(fault))
    try:
        return _stepped(device, cfg, steps, cost)
    except (NielsError, RuntimeError, MemoryError) as error:
        reason = "out of memory" if is_out_of_memory(error) else str(error).partition("\n")[0]
        return replace(cost, trouble=reason or type(error).__name__)
    finally:
        gc.collect()
        if device.type == "mps":
            torch.mps.empty_cache()


def _stepped(device: torch.device, cfg: RunCfg, steps: int, cost: Cost) -> Cost:
    """Take a step to warm up, one under the counter, and `steps` by the clock."""
    train = cfg.train
    torch.manual_seed(derived_seed("weights", train.seed))
    model = GPT(cfg.model, activation_checkpointing=train.activation_checkpointing).to(device)
    state, source = TrainState(model, make_optimizer(model, train)), RandomIds(cfg.model)
    step = partial(_step, state, train, source, amp_factory(device, train))
    step()
    with LiveBytes(device) as live:
        step()
    seconds = median(step() for _ in range(steps))
    return replace(
        cost,
        seconds=seconds,
        tokens_per_second=train.effective_batch * cfg.model.T / seconds,
        peak=live.peak,
        driver=live.driver or None,
    )


def _step(state: TrainState, cfg: TrainCfgSchema, source: "RandomIds", amp: Amp) -> float:
    """Take one optimizer step and return its seconds."""
    started = time.perf_counter()
    optimizer_step(state, cfg, source, amp, lr_at(state.step, cfg))
    if state.model.device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - started


class RandomIds:
    """Sequences of random token ids, every one a target."""

    def __init__(self, cfg: ModelCfg) -> None:
        self.V, self.T = cfg.V, cfg.T

    def __len__(self) -> int:
        return 1 << 30

    def draw(self, first: int, count: int) -> Batch:
        """Return `count` sequences, (count, T) each."""
        generator = torch.Generator().manual_seed(first)
        ids = torch.randint(self.V, (count, self.T + 1), generator=generator)
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that were made under it and still live; `peak` is the most there were.

    Allocators hide freed pages, so this looks at the storages themselves, after each operation: a kernel's
    own workspace is not seen. On mps `driver` is the most that the Metal driver held after an operation.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_mps = device.type == "mps"
        self.now = self.peak = self.driver = 0
        self._live: dict[int, int] = {}  # a storage's address -> its bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, then count what it made."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage._cdata not in given and storage._cdata not in self._live:
                self._add(storage)
        self.peak = max(self.peak, self.now)
        if self.on_mps:
            self.driver = max(self.driver, torch.mps.driver_allocated_memory())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._live[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        weakref.finalize(storage, self._remove, storage._cdata)

    def _remove(self, address: int) -> None:
        self.now -= self._live.pop(address)


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    """Yield the storages of all tensors in nested arguments."""
    yield from (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def theory(cfg: ModelCfg, train: TrainCfgSchema) -> int:
    """Return the bytes of activations at the peak of a microbatch, in float32, attention fused, dropout 0.

    A block keeps 10 N C + 4 N d_ff floats for the backward pass, or its input N C alone if it is recomputed;
    on top comes the head with 3 N V (logits, probabilities, gradient) or a block that is being recomputed.
    """
    N = train.B * cfg.T
    block = N * (10 * cfg.C + 4 * cfg.d_ff)
    head = 3 * min(N * cfg.V, LOGITS_AT_ONCE)
    if train.activation_checkpointing:
        return FLOAT * (cfg.L * N * cfg.C + max(head, block))
    return FLOAT * (cfg.L * block + head)


def savings(costs: list[Cost]) -> list[dict[str, Any]]:
    """Return for each precision the bytes that memory=ckpt saves, measured and in theory, and its time ratio."""
    found = []
    for off, ckpt in _pairs(costs):
        saving: dict[str, Any] = {"precision": off.precision, "theory": off.theory - ckpt.theory}
        if off.peak and ckpt.peak and off.seconds and ckpt.seconds:
            saving |= {"peak": off.peak - ckpt.peak, "time": ckpt.seconds / off.seconds}
        found.append(saving)
    return found


def unchecked(device: torch.device, cfg: RunCfg) -> list[str]:
    """Return what this examination cannot tell, in sentences."""
    notes = []
    if device.type == "mps":
        notes.append("peak memory within an operation; tensors and driver are looked at after each one")
        notes.append(
            "the theory on mps: it is for float32 and fused attention; there attention keeps T x T scores, "
            "and activations in fp16 or bf16 take half"
        )
    else:
        why = (
            f"device={cfg.device} was asked for" if torch.backends.mps.is_available() else "this machine has none"
        )
        notes.append(f"mps ({why}): Metal's arithmetic, autocast, speed and memory; run this command on a Mac")
        notes.append(
            "fp16 and bf16 in a run: on the CPU it computes in float32 whatever the precision, so it is measured "
            "once; the verdicts on them are of the CPU's autocast"
        )
        notes.append("memory within an operation; tensors are counted after each one")
    return notes


def verdict_table(device: torch.device, verdicts: list[Verdict]) -> str:
    """Return what preflight said, a line per precision."""
    rows = [(f"precision={v.precision}", "; ".join(v.wrong) or "computes rightly") for v in verdicts]
    return table([("preflight", f"on {device.type}, against float32 on the CPU"), *rows])


def cost_table(costs: list[Cost]) -> str:
    """Return the measurements, a line per variant; what is saved is against the line above."""
    head = ("precision", "memory", "s/step", "tokens/s", "peak MiB", "driver MiB", "saved", "in theory")
    rows = [cost_row(cost, off) for off, ckpt in _pairs(costs) for cost in (off, ckpt)]
    return table([head, *rows])


def cost_row(cost: Cost, off: Cost) -> tuple[str, ...]:
    """Return the cells of one measurement; `off` is the one without recomputation."""
    if cost.seconds is None:
        return cost.precision, cost.memory, cost.trouble
    cells = (f"{cost.seconds:.3f}", f"{cost.tokens_per_second:,.0f}", mib(cost.peak), mib(cost.driver))
    saved = off.peak - cost.peak if off.peak and cost.peak else None
    compared = ("-", "-") if cost is off else (mib(saved), mib(off.theory - cost.theory))
    return cost.precision, cost.memory, *cells, *compared


def _pairs(costs: list[Cost]) -> Iterator[tuple[Cost, Cost]]:
    """Yield each precision's costs without and with recomputation."""
    yield from zip(costs[::2], costs[1::2], strict=True)


def mib(size: int | None) -> str:
    """Return bytes in MiB, a dash for None."""
    return "-" if size is None else f"{size / MIB:,.0f}"


def table(rows: list[tuple[str, ...]]) -> str:
    """Return rows as aligned columns; a short row's last cell may be as wide as it likes."""
    full = [row for row in rows if len(row) == max(map(len, rows))]
    widths = [max(len(row[n]) for row in full) for n in range(len(full[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def report_path(asked: Path | None) -> Path:
    """Return where the report goes: `asked`, or doctor.json, doctor-2.json, ...: whichever is not there yet.

    Raises:
        ConfigError: `asked` is there already, or its folder is not.
    """
    if asked is None:
        names = ("doctor.json", *(f"doctor-{n}.json" for n in range(2, 1000)))
        return next(path for path in map(Path, names) if not path.exists())
    if asked.exists():
        raise ConfigError(f"--json {asked}: it is there already", "give another name, or none")
    if not asked.parent.is_dir():
        raise ConfigError(f"--json {asked}: there is no folder {asked.parent}", "make it, or give another name")
    return asked


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write `report` as JSON to a new file."""
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(report, indent=2) + "\n")
