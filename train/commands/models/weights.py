"""List a run's checkpoints, choose among them, and export their weights: niels_gpt checkpoints and export."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from niels_gpt.errors import CheckpointError
from niels_gpt.printable import escape_line
from niels_gpt.weights.paths import BEST, LATEST, is_hugging_face, parse_step, step_files
from train.artifacts.metrics import METRICS, read_metrics
from train.cli.command import Parser, at_least, defer_signals
from train.cli.output import add_json_flag, format_table, report
from train.report.model_card import make_model_card
from train.report.rows import PHASES

DTYPES = ("float32", "bfloat16", "float16", "q8_0")


def add_weight_flags(parser: ArgumentParser) -> None:
    """Add --step, --average and --ema, for `choose_weights`."""
    parser.add_argument("--step", type=at_least(1), metavar="N", help="use the weights of step N, not the best")
    parser.add_argument(
        "--average", type=at_least(1), metavar="N", help="use the mean of the last N kept steps' weights"
    )
    parser.add_argument("--ema", action="store_true", help="use the moving average of train.ema, of the last step")


def choose_weights(options: Namespace) -> dict[str, Any]:
    """Return the arguments of `load_session` that the flags stand for."""
    return {name: vars(options)[name] for name in ("step", "average", "ema")}


def run_export() -> None:
    """Export a trained model for other programs, with its tokenizer, chat template and a model card."""
    parser = Parser(description=run_export.__doc__)
    parser.add_argument("run", type=Path, help="a run folder, a checkpoint or a Hugging Face folder")
    parser.add_argument("folder", type=Path, help="a new folder for the export")
    parser.add_argument(
        "--to", choices=("hf", "gguf"), default="hf", help="hf: Hugging Face's Llama (default); gguf: llama.cpp's"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="type of the weights (default float32, float16 for gguf)")
    add_weight_flags(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the export with the run in transformers, mlx-lm or xllamacpp",
    )
    options = parser.parse_args()
    if options.dtype == "q8_0" and options.to == "hf":
        parser.error("--dtype q8_0 goes with --to gguf")
    dtype = options.dtype or ("float32" if options.to == "hf" else "float16")
    with defer_signals():  # imports torch, which takes seconds
        from niels_gpt.weights.checkpoint import get_phase_folder
        from niels_gpt.weights.gguf import export_gguf
        from niels_gpt.weights.llama import export_llama
        from niels_gpt.weights.trained_model import open_model
        from niels_gpt.weights.verify import require_program, verify_export

    if options.verify:
        require_program(options.to, options.folder)
    model, tokenizer, chats, path, weights = open_model(options.run, **choose_weights(options))
    phase = get_phase_folder(path)
    run = phase if is_hugging_face(options.run) else phase.parent
    card = make_model_card(run, phase.name, model.cfg, model.parameter_count(), weights)
    more: Any = {"dtype": dtype, "chats": chats, "card": card}
    if options.to == "gguf":
        export_gguf(model, tokenizer, options.folder, run.resolve().name, **more)
    else:
        export_llama(model, tokenizer, options.folder, **more)
    print(f"wrote {escape_line(f'{options.folder} from {weights}')}", flush=True)
    if options.verify:
        for line in verify_export(model, tokenizer, options.folder, to=options.to, dtype=dtype, chats=chats):
            print(line, flush=True)


def run_checkpoints() -> None:
    """List the checkpoints of a run: step, validation loss, size, and whether each can be read."""
    parser = Parser(description=run_checkpoints.__doc__)
    parser.add_argument("run", type=Path, help="a run folder, such as runs/default, or a phase's folder in it")
    add_json_flag(parser)
    options = parser.parse_args()
    with defer_signals():  # imports torch, which takes seconds
        from niels_gpt.weights.checkpoint import read_checkpoint

    def list_checkpoints() -> list[dict[str, Any]]:
        folders = [options.run / phase for phase in (*PHASES, ".")]
        entries = [entry for folder in folders for entry in examine_folder(folder, read_checkpoint)]
        if not entries:
            raise CheckpointError(f"{options.run} has no checkpoints", "name a run folder, such as runs/default")
        lines = [("checkpoint", "step", "loss", "MB", "state")]
        for entry in entries:
            names = escape_line(", ".join([entry["checkpoint"], *entry["also"]]))
            loss = "" if entry["loss"] is None else f"{entry['loss']:.4f}"
            state = "good" if entry["damage"] is None else f"damaged: {entry['damage']}"
            lines.append((names, str(entry["step"] or ""), loss, f"{entry['bytes'] / 1e6:,.1f}", state))
        print(format_table(lines, right=(1, 2, 3)), end="")
        return entries

    report(options.json, list_checkpoints)


def examine_folder(folder: Path, read: Callable[[Path], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what is known of each checkpoint in a phase's folder, also under second names; `read` reads one.

    The loss is that of the evaluation at its step, None if there was none.
    """
    events = [event for event in read_metrics(folder / METRICS) if event["event"] == "val"]
    losses = {event["step"]: event["loss"] for event in events if isinstance(event.get("loss"), float)}
    names: dict[tuple[int, int], list[Path]] = {}  # by inode and size
    for path in (*folder.glob("*.damaged"), *reversed(step_files(folder)), folder / BEST, folder / LATEST):
        with suppress(FileNotFoundError, NotADirectoryError):
            names.setdefault(((stat := path.stat()).st_ino, stat.st_size), []).append(path)
    for (_, size), (path, *others) in names.items():
        step, damage = parse_step(path), None
        try:
            saved = read(path)["step"]
            if step not in (None, saved):
                damage = f"it holds step {saved}"
            step = saved
        except CheckpointError as error:
            if not path.exists():  # a run that goes on has removed it
                continue
            damage = str(error).removeprefix(str(path)).lstrip(": ")
        yield {
            "checkpoint": str(path),
            "also": [other.name for other in others],
            "step": step,
            "loss": losses.get(step),
            "bytes": size,
            "damage": damage,
        }
