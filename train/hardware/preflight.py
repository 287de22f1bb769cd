"""Check the device before a run: a toy GPT on it against the same in fp32 on the CPU."""

import platform
import warnings
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from niels_gpt.config import ModelCfg
from niels_gpt.errors import ConfigError, first_line
from niels_gpt.model.gpt import GPT
from train.config.schema import RunCfg
from train.loop.amp import DTYPES, Amp, amp_active, amp_factory

TOY = ModelCfg(V=256, T=8, C=32, L=2, H=2, d_ff=64, tie_embeddings=True)  # a separate head starts at zero
LONGEST_SUM = 32767  # terms of a matrix product, from which on M1 and M2 with torch before 2.14 may be wrong
CPU = torch.device("cpu")
WAY_OUT = "use precision=off or precision=fp16"


def preflight(device: torch.device, cfg: RunCfg) -> None:
    """Refuse an mps device that computes wrongly, or not in the asked precision; ask nothing of the CPU.

    Raises:
        ConfigError: what was asked, what was seen, and the way out.
    """
    if device.type != "mps":
        return
    if fault := known_fault(cfg, torch_version()):
        raise ConfigError(fault[0], fault[1])
    active = amp_active(device, cfg.train)
    dtype = DTYPES[cfg.train.amp_dtype] if active else torch.float32
    if seen := list(problems(device, amp_factory(device, cfg.train), dtype)):
        asked = f"train.amp_dtype={cfg.train.amp_dtype}" if active else "train.amp=false"
        where = f"torch {torch.__version__}, macOS {platform.mac_ver()[0] or 'unknown'}"
        raise ConfigError(f"{asked} was asked for on {device.type}, but {'; '.join(seen)} ({where})", WAY_OUT)


def torch_version() -> tuple[int, int]:
    """Return major and minor of the running torch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def known_fault(cfg: RunCfg, version: tuple[int, int]) -> tuple[str, str] | None:
    """Return message and hint if this torch computes such a run wrongly on mps (pytorch 177116, 195910)."""
    B, T, V = cfg.train.B, cfg.model.T, cfg.model.V
    if version < (2, 13):
        return "this torch leaks later tokens into earlier ones on mps", "install torch 2.14 or later"
    if version >= (2, 14):
        return None
    wrong = f"is {LONGEST_SUM} or more, which torch 2.13 may multiply wrongly on mps"
    if B * T >= LONGEST_SUM:
        hint = "lower train.B and raise train.accum_steps, or install torch 2.14 or later"
        return f"train.B={B} x model.T={T} {wrong}", hint
    if V >= LONGEST_SUM:
        return f"model.V={V} {wrong}", "lower model.V, or install torch 2.14 or later"
    return None


def problems(device: torch.device, amp: Amp, dtype: torch.dtype) -> Iterator[str]:
    """Yield what is wrong with a toy forward and backward pass in `dtype` under `amp`, in words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield from _compared(device, amp, dtype)
        except (RuntimeError, TypeError) as error:
            yield f"it raised {first_line(error)}"
    if any("Disabling autocast" in str(warning.message) for warning in caught):
        yield "autocast turned itself off"


def _compared(device: torch.device, amp: Amp, dtype: torch.dtype) -> Iterator[str]:
    expected_loss, expected, _ = _pass(CPU, nullcontext, _toy())
    loss, gradient, seen = _pass(device, amp, _toy())
    if seen != dtype:
        yield f"a projection gave {seen}"
    if not (torch.isfinite(loss) and torch.isfinite(gradient).all()):
        yield "loss or gradient was not finite"
    elif abs(loss - expected_loss) > 0.02 * expected_loss or cosine_similarity(gradient, expected, dim=0) < 0.99:
        yield f"loss {loss:.4f} or gradient differ from fp32 on the CPU (loss {expected_loss:.4f})"
    changed = _ids()
    changed[:, -1] += 1
    before, after, exact = (
        _logits(device, amp, _ids()),
        _logits(device, amp, changed),
        _logits(CPU, nullcontext, _ids()),
    )
    if not torch.allclose(before[:, :-1], after[:, :-1], rtol=0, atol=1e-3):
        yield "a later token changed an earlier one"
    elif cosine_similarity(before.flatten(), exact.flatten(), dim=0) < 0.99:
        yield "logits without gradients differ from fp32 on the CPU"
    dropped = [_pass(device, amp, _toy(0.5, activation_checkpointing=on))[1] for on in (False, True)]
    if not cosine_similarity(dropped[0], dropped[1], dim=0) > 0.999:
        yield "recomputation with dropout gave another gradient"


def _toy(dropout: float = 0.0, *, activation_checkpointing: bool = False) -> GPT:
    torch.manual_seed(0)
    return GPT(TOY.model_copy(update={"dropout": dropout}), activation_checkpointing=activation_checkpointing)


def _ids() -> Tensor:
    return torch.arange(2 * TOY.T).view(2, TOY.T) * 7 % TOY.V


def _pass(device: torch.device, amp: Amp, model: GPT) -> tuple[Tensor, Tensor, torch.dtype]:
    """Return loss, gradient as one vector, both on the CPU, and the dtype that a projection computed in."""
    model = model.to(device).train()
    seen: list[torch.dtype] = []
    model.get_submodule("blocks.0.attention.q_proj").register_forward_hook(
        lambda _, __, out: seen.append(out.dtype)
    )
    ids = _ids().to(device)
    torch.manual_seed(1)
    with amp():
        loss = model.loss(ids, ids.roll(-1, 1), ids.numel())
    loss.backward()
    gradients = [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
    return loss.detach().cpu(), torch.cat(gradients), seen[0]


@torch.no_grad()
def _logits(device: torch.device, amp: Amp, ids: Tensor) -> Tensor:
    """Return the toy's logits without gradients, as in evaluation, where mps takes other kernels; on the CPU."""
    model = _toy().to(device).eval()
    with amp():
        logits: Tensor = model(ids.to(device))
    return logits.cpu()
