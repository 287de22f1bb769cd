"""Carry out a plan, one phase after the other, each from the best checkpoint of the one before."""

import logging
import time
from pathlib import Path

import torch

from niels_gpt.device import reset_peak_memory, resolve_device
from niels_gpt.errors import Interrupted, TimeIsUp
from niels_gpt.storage import write_json
from niels_gpt.weights.paths import DATA
from train.artifacts.checkpointing import TrainState, estimate_size
from train.artifacts.disk import require_writable
from train.artifacts.results import PhaseResult, find_reusable_result, read_results, write_results
from train.artifacts.run_folder import claim_run_folder, remove_stale_files
from train.cli.signals import stop_on_signals
from train.config.schema import PhaseName, RunCfg
from train.hardware.batch_search import choose_batch
from train.hardware.cpu import prepare_cpu
from train.hardware.out_of_memory import explain_out_of_memory
from train.hardware.preflight import check_device
from train.loop.early_stopping import is_out_of_patience
from train.loop.evaluate import fit_unigram_baseline
from train.loop.logger import RunLogger
from train.loop.model import make_model, require_compiler
from train.loop.optim import make_optimizer
from train.loop.steps import train_loop
from train.report.diagnosis import watch_phase
from train.run.data import open_data
from train.run.resume import find_starting_point, open_tokenizer, restore
from train.run.sample import log_sample
from train.run.summary import log_start, log_summary, make_result
from train.run.time_limit import TimeLimit

log = logging.getLogger("niels_gpt")


def run(plan: list[RunCfg]) -> list[PhaseResult]:
    """Carry out the phases of a plan in their run folder, except complete ones.

    NielsError: the subclass tells what went wrong; saved checkpoints are intact.
    """
    started = time.monotonic()
    device = resolve_device(plan[0].device)
    claim_run_folder(plan)
    remove_stale_files(plan)
    plan = [choose_batch(cfg) for cfg in plan]
    reusable = {cfg.phase: find_reusable_result(cfg) for cfg in plan}
    saved = read_results(Path(plan[0].dir)).items()  # of complete phases and of those outside this plan
    results = {phase: result for phase, result in saved if phase not in reusable or reusable[phase]}
    previous = None
    for cfg in plan:
        if result := reusable[cfg.phase]:
            log.info("%s: complete at step %d, nothing to do", cfg.phase, result.step)
        else:
            with explain_out_of_memory(cfg, device):
                run_phase(cfg, device, previous, results, last=cfg is plan[-1])
        previous = cfg.out
    done = [results[cfg.phase] for cfg in plan]
    log_summary(plan, done, time.monotonic() - started)
    return done


def run_phase(
    cfg: RunCfg,
    device: torch.device,
    previous: Path | None,
    results: dict[PhaseName, PhaseResult],
    *,
    last: bool,
) -> None:
    """Carry out one phase, add its result to the run's `results` and save them; show a sample after the `last`.

    A new phase starts from the best checkpoint in `previous`, if that folder is given.
    """
    check_device(device, cfg)
    require_compiler(device, cfg.train)
    prepare_cpu(device)
    start = find_starting_point(cfg, previous)
    tokenizer = open_tokenizer(cfg)
    model = make_model(cfg.model, cfg.train, device)
    state = TrainState(model, make_optimizer(model, cfg.train))
    data = open_data(cfg, tokenizer)
    origin = restore(state, start, cfg, tokenizer, data)
    del start  # frees the memory of the checkpoints
    log_start(cfg, state, data)
    baseline = fit_unigram_baseline(data.train, data.val, tokenizer.token_bytes(), cfg.train.B)
    cfg.out.mkdir(parents=True, exist_ok=True)
    require_writable(cfg.out, estimate_size(model, ema=cfg.train.ema is not None))
    folders = [str(cache.folder.resolve()) for _, cache in data.caches]
    write_json(cfg.out / DATA, {"model": cfg.model.model_dump(), "caches": folders, "sources": data.sources})
    logger = RunLogger(cfg.out, cfg.train.total_steps, state, baseline, cfg)
    logger.observers.append(watch_phase(cfg.out, cfg.train.total_steps, baseline.unigram_loss))
    started, limit = time.monotonic(), TimeLimit(cfg.out, cfg.train.max_minutes)
    with stop_on_signals() as stop, logger.progress:
        reset_peak_memory(device)
        try:
            train_loop(
                state,
                cfg.train,
                data.train,
                data.val,
                out=cfg.out,
                logger=logger,
                origin=origin,
                stop=lambda: stop() or limit.is_reached(),
            )
        finally:  # a loss that became nan is worth a picture too
            logger.close()
    seconds = time.monotonic() - started
    limit.save()
    require_complete(cfg, state, stop.signum)
    results[cfg.phase] = make_result(cfg, state, baseline, origin, seconds)
    write_results(cfg, list(results.values()))
    if last:
        log_sample(cfg.phase, state.model, tokenizer, data.val[0].source)


def require_complete(cfg: RunCfg, state: TrainState, signum: int | None) -> None:
    """Raise if a phase was stopped before its end.

    Interrupted if stopped by a signal. TimeIsUp if stopped by `max_minutes`.
    """
    stopped = f"stopped at step {state.step}, saved" if state.step else "stopped before its first step"
    never = cfg.resume == "never"
    if signum is not None:
        way_out = "continue with resume=auto" if never else "the same command continues from there"
        raise Interrupted(f"{cfg.phase}: {stopped}", way_out, signum)
    complete = state.step >= cfg.train.total_steps and state.evaluated
    if not complete and not is_out_of_patience(state, cfg.train.patience, cfg.out):
        raise TimeIsUp(
            f"{cfg.phase}: train.max_minutes={cfg.train.max_minutes} reached, {stopped}",
            f"continue with {'resume=auto and ' if never else ''}a larger train.max_minutes=...",
        )
