"""Check the device before a run by comparing a toy GPT on it with the same in fp32 on the CPU."""

import platform
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from niels_gpt.config import ModelCfg
from niels_gpt.data.batches import Batch
from niels_gpt.errors import ConfigError, first_line
from niels_gpt.model.gpt import GPT
from train.config.schema import RunCfg
from train.loop.amp import DTYPES, Amp, amp_factory

TOY = ModelCfg(V=256, T=8, C=32, L=2, H=2, d_ff=64, tie_embeddings=True)  # a separate head starts at zero
IDS = torch.arange(2 * TOY.T).view(2, TOY.T) * 7 % TOY.V
SEGMENTS = (torch.arange(TOY.T) >= TOY.T // 2).long().expand(2, -1)
LONGEST_SUM = 32767  # terms in a matrix product
CPU = torch.device("cpu")


def check_device(device: torch.device, cfg: RunCfg) -> None:
    """Refuse an mps device that computes wrongly, or not in the asked precision; the CPU always passes.

    ConfigError if the device failed; it names the setting, the failure and the way out.
    """
    if device.type != "mps":
        return
    refuse_known_faults(device, cfg)
    dtype = DTYPES[cfg.train.amp_dtype] if cfg.train.amp else torch.float32
    if problems := list(find_problems(device, amp_factory(device, cfg.train), dtype)):
        asked = f"train.amp_dtype={cfg.train.amp_dtype}" if cfg.train.amp else "train.amp=false"
        where = f"torch {torch.__version__}, macOS {platform.mac_ver()[0] or 'unknown'}"
        raise ConfigError(
            f"{asked} does not work on {device.type}: {'; '.join(problems)} ({where})",
            "use precision=off or precision=fp16",
        )


def refuse_known_faults(device: torch.device, cfg: RunCfg) -> None:
    """Refuse sizes that torch 2.13 may multiply wrongly on M1 and M2 (pytorch 177116).

    ConfigError if B x T or V is too large; it names the way out.
    """
    if device.type != "mps" or torch.__version__ >= "2.14":  # torch compares it as a version
        return
    B, T, V = cfg.train.B, cfg.model.T, cfg.model.V
    wrong = f"is {LONGEST_SUM} or more, which torch 2.13 may multiply wrongly on mps"
    if B * T >= LONGEST_SUM:
        hint = "lower train.B and raise train.accum_steps, or install torch 2.14 or later"
        raise ConfigError(f"train.B={B} x model.T={T} {wrong}", hint)
    if V >= LONGEST_SUM:
        raise ConfigError(f"model.V={V} {wrong}", "lower model.V, or install torch 2.14 or later")


def find_problems(device: torch.device, amp: Amp, dtype: torch.dtype) -> Iterator[str]:
    """Yield the faults of a toy forward and backward pass in `dtype` under `amp`."""
    try:
        expected_loss, expected, _ = _run_pass(CPU, nullcontext, _make_toy())
        loss, gradient, seen = _run_pass(device, amp, _make_toy())
        if seen != dtype:
            yield f"a projection gave {seen}"
        if not (torch.isfinite(loss) and torch.isfinite(gradient).all()):
            yield "loss or gradient was not finite"
        elif (
            abs(loss - expected_loss) > 0.02 * expected_loss or cosine_similarity(gradient, expected, dim=0) < 0.99
        ):
            yield f"loss {loss:.4f} or gradient differ from fp32 on the CPU (loss {expected_loss:.4f})"
        else:
            expected, gradient = (
                _run_pass(*how, _make_toy(), SEGMENTS)[1] for how in ((CPU, nullcontext), (device, amp))
            )
            if not cosine_similarity(gradient, expected, dim=0) > 0.99:
                yield "attention within segments gave another gradient than in fp32 on the CPU"
        changed, other = IDS.clone(), IDS.clone()
        changed[:, -1] += 1
        other[:, 0] += 1
        before, after = (_compute_logits(device, amp, ids) for ids in (IDS, changed))
        exact = _compute_logits(CPU, nullcontext, IDS)
        if not torch.allclose(before[:, :-1], after[:, :-1], rtol=0, atol=1e-3):
            yield "a later token changed an earlier one"
        elif cosine_similarity(before.flatten(), exact.flatten(), dim=0) < 0.99:
            yield "logits without gradients differ from fp32 on the CPU"
        before, after = (_compute_logits(device, amp, ids, SEGMENTS)[:, TOY.T // 2 :] for ids in (IDS, other))
        if not torch.allclose(before, after, rtol=0, atol=1e-3):
            yield "a token of one segment changed another segment"
        dropped = [_run_pass(device, amp, _make_toy(0.5, activation_checkpointing=on))[1] for on in (False, True)]
        if not cosine_similarity(dropped[0], dropped[1], dim=0) > 0.999:
            yield "recomputation with dropout gave another gradient"
    except (RuntimeError, TypeError) as error:
        yield f"it raised {first_line(error)}"


def _make_toy(dropout: float = 0.0, *, activation_checkpointing: bool = False) -> GPT:
    torch.manual_seed(0)
    return GPT(TOY.model_copy(update={"dropout": dropout}), activation_checkpointing=activation_checkpointing)


def _run_pass(
    device: torch.device, amp: Amp, model: GPT, segments: Tensor | None = None
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Return the loss and the gradient as a vector, both on the CPU, and the dtype of a projection's output."""
    model = model.to(device).train()
    seen: list[torch.dtype] = []
    projection = model.get_submodule("blocks.0.attention.q_proj")
    projection.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    ids, _, segments = Batch(IDS, IDS, segments).to(device)
    torch.manual_seed(1)
    with amp():
        loss = model.loss(ids, ids.roll(-1, 1), ids.numel(), segments)
    loss.backward()
    gradients = [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
    return loss.detach().cpu(), torch.cat(gradients), seen[0]


@torch.no_grad()
def _compute_logits(device: torch.device, amp: Amp, ids: Tensor, segments: Tensor | None = None) -> Tensor:
    """Compute the toy's logits without gradients, where mps takes other kernels; return them on the CPU."""
    model = _make_toy().to(device).eval()
    x, _, segments = Batch(ids, ids, segments).to(device)
    with amp():
        logits: Tensor = model(x, segments=segments)
    return logits.cpu()
