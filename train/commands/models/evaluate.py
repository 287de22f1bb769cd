"""Measure trained models on text, dialogues or questions, and compare them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from niels_gpt.errors import ConfigError
from niels_gpt.printable import escape_line
from train.cli.command import Parser, at_least, defer_signals
from train.cli.output import add_json_flag, format_table, report
from train.commands.models.weights import add_weight_flags, choose_weights

if TYPE_CHECKING:  # they import torch
    from niels_gpt.evaluation.scoring import Sums
    from niels_gpt.evaluation.texts import TextSet
    from niels_gpt.weights.trained_model import TrainedModel

Models = Sequence[tuple[str, "TrainedModel"]]


def main() -> None:
    """Measure models on text, dialogues or, without either, on questions; compare each with the first."""
    parser = Parser(description=main.__doc__)
    parser.add_argument("models", nargs="+", type=Path, help="run folders, checkpoints, Hugging Face folders")
    parser.add_argument("--files", nargs="+", metavar="PATH", help="text: files, folders, globs, or JSON rows")
    parser.add_argument("--chat", nargs="+", metavar="PATH", help="dialogues in JSON rows, as for data=jsonl")
    parser.add_argument(
        "--stride", type=at_least(1), metavar="N", help="slide over text by N tokens (default: the whole context)"
    )
    add_weight_flags(parser)
    add_json_flag(parser)
    options = parser.parse_args()
    if options.stride and not options.files:
        parser.error("--stride goes with --files")
    with defer_signals():  # imports torch, which takes seconds
        from niels_gpt.evaluation.questions import SOURCES, open_questions
        from niels_gpt.evaluation.texts import open_dialogues, open_documents
        from niels_gpt.weights.trained_model import open_model

    def evaluate() -> list[dict[str, Any]]:
        models = [(str(path), open_model(path, **choose_weights(options))) for path in options.models]
        for name, trained in models:
            if options.stride and options.stride > trained.model.cfg.T:
                reason = (
                    f"--stride {options.stride} is more than the context of {name}, {trained.model.cfg.T} tokens"
                )
                raise ConfigError(reason, "use less, such as half of the context")
        texts = [open_documents(options.files, options.stride)] if options.files else []
        texts += [open_dialogues(options.chat)] if options.chat else []
        for name, trained in models:
            print(escape_line(f"{name}: {trained.weights}"))
        results = [compare_models(models, text) for text in texts]
        if not results:
            results = [compare_models(models, *open_questions(kind)) for kind in SOURCES]
        if any(result["units"] > 1 for result in results):
            print("± is a standard error; ranges are intervals of 95 %")
        return results

    report(options.json, evaluate)


def compare_models(models: Models, text: "TextSet", chance: dict[str, int] | None = None) -> dict[str, Any]:
    """Measure each model on a set, and how each differs from the first; print both, and return them for JSON."""
    from niels_gpt.evaluation.estimates import estimate_difference

    (first, base), *others = measured = [measure_model(*model, text, chance) for model in models]
    print(f"{escape_line(text.name)}: {text.about}")
    rows = [[format_cell(figure) for figure in figures.values()] for figures, _ in measured]
    print(format_table([[key.replace("_", " ") for key in first], *rows], right=range(1, len(first))), end="")
    differences = []
    for figures, sums in others:
        change = estimate_difference(sums, base)._asdict()
        differences.append({"model": figures["model"], "base": first["model"]} | change)
        print(describe_difference(**differences[-1]))
    print()
    for (figures, _), (_, trained) in zip(measured, models, strict=True):
        figures["weights"] = trained.weights
    about = {"text": text.name, "about": text.about, "bytes": text.size, "units": text.units}
    return about | {"models": [figures for figures, _ in measured], "bits_per_byte_differences": differences}


def measure_model(
    name: str, trained: "TrainedModel", text: "TextSet", chance: dict[str, int] | None
) -> tuple[dict[str, Any], "Sums"]:
    """Return the figures of a model in the order of the table, and the sums of units behind them."""
    from niels_gpt.evaluation.estimates import estimate_losses, estimate_share
    from niels_gpt.evaluation.questions import mark_answers
    from niels_gpt.evaluation.scoring import TOKENS, score_windows

    figures: dict[str, Any] = {"model": name}
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(escape_line(name), total=text.size)
        windows = text.cut(trained.tokenizer, trained.model.cfg.T)
        sums = score_windows(*trained[:2], windows, text.units, advance=lambda size: progress.advance(task, size))
    if chance:
        marks, sums = mark_answers(sums)
        for key, count in marks.items():
            share = estimate_share(count, len(sums))
            figures[key] = {"count": count, "of": len(sums), "by_chance": chance[key]} | share._asdict()
    figures["tokens"] = int(sums[:, TOKENS].sum())
    return figures | {key: found._asdict() for key, found in estimate_losses(sums).items()}, sums


def format_cell(figure: Any) -> str:
    """Return a figure for the table, an estimate to two digits of its standard error."""
    match figure:
        case str():
            return escape_line(figure)
        case int():
            return f"{figure:,}"
        case {"count": count, "low": low, "high": high}:
            return f"{count} ({low:.0%} to {high:.0%})"
    error = figure["error"]
    decimals = min(9, max(0, 1 - math.floor(math.log10(error)))) if 0 < error < math.inf else 4
    return f"{figure['value']:,.{decimals}f}" + (f" ± {error:.{decimals}f}" if error == error else "")


def describe_difference(model: str, base: str, value: float, error: float, low: float, high: float) -> str:
    """Say in bits per byte how two models differ, and whether it may be chance."""
    model, base = escape_line(model), escape_line(base)
    if value == error == 0:
        return f"{model} and {base} are equal"
    if math.isnan(value):
        return f"{model} and {base} cannot be compared: a loss is not a number"
    found = f"{model} - {base}: {value:+.4f} bits per byte"
    if math.isnan(error):
        return f"{found}; one document or dialogue is too few for an interval"
    better = "no clear difference" if low <= 0 <= high else f"{base if low > 0 else model} is better"
    return f"{found} ({low:+.4f} to {high:+.4f}): {better}"
