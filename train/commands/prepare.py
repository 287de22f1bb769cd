"""Build the tokenizer and token caches of a run without training, and show what is in them."""

import logging
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

from rich import get_console
from rich.columns import Columns
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from niels_gpt.printable import escape_line, format_count
from niels_gpt.tokenizer import Tokenizer
from train.cli.command import Parser, defer_signals
from train.cli.console import ConsoleHandler
from train.cli.output import add_report_flags, report
from train.config import compose_plan
from train.config.schema import RunCfg
from train.config.suggest import point_to_help
from train.report.diagnosis import warn_of_repetition

EXAMPLE = f"example: niels_gpt prepare phase=pretrain data=text data.files=notes; {point_to_help()}"
SEQUENCES, LINES, BAR = 2, 6, 14  # sequences of SFT, lines of an example at most, characters of the longest bar
log = logging.getLogger("niels_gpt")


def main() -> None:
    """Prepare and show the phases of a run."""
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument("overrides", nargs="*", help="settings of training, such as data=text data.files=notes")
    add_report_flags(parser)
    options = parser.parse_intermixed_args()
    plan = compose_plan(options.overrides)
    log.addHandler(ConsoleHandler())
    log.setLevel(logging.INFO)
    with defer_signals():  # imports torch, which takes seconds
        from train.run.resume import choose_tokenizer

    def prepare() -> list[dict[str, Any]]:
        tokenizer, _ = choose_tokenizer(plan[0])
        return [show_phase(cfg, tokenizer) for cfg in plan]

    report(options.json, prepare, options.out)


def show_phase(cfg: RunCfg, tokenizer: Tokenizer) -> dict[str, Any]:
    """Open the data of a phase, built if it is missing; print what is in it, and return that for JSON."""
    from niels_gpt.data.statistics import describe_cache, split_text
    from niels_gpt.loss import IGNORE
    from train.run.data import WANTS, open_data

    data, batch = open_data(cfg, tokenizer), []
    if cfg.phase == "sft":
        x, y, segments = data.train.draw(0, SEQUENCES)
        for n in range(SEQUENCES):
            ids, mask = [*x[n].tolist(), int(y[n, -1])], [False, *(y[n] != IGNORE).tolist()]
            end = 1 + max(place for place, is_target in enumerate(mask) if is_target)  # then comes padding
            begins = [] if segments is None else (1 + segments[n, :end].diff().nonzero().flatten()).tolist()
            parts = (slice(*bounds) for bounds in pairwise([0, *begins, end]))
            texts = [split_text(ids[part], mask[part], tokenizer) for part in parts]
            batch.append({"padding": len(ids) - end, "segments": texts})
    drawn = cfg.train.total_steps * cfg.train.effective_batch  # sequences
    epochs = data.count_epochs(drawn)
    phase = {
        "phase": cfg.phase,
        "items": WANTS[cfg.phase],
        "tokenizer": {"entries": tokenizer.V, "sha256": tokenizer.hash()},
        "sequences": len(data.train),
        "epochs": drawn / len(data.train),
        "sources": [
            {"source": source.label, "cache": str(cache.folder), "weight": source.weight}
            | {"epochs": times}
            | describe_cache(cache, tokenizer)
            for (source, cache), (_, times) in zip(data.caches, epochs, strict=True)
        ],
        "warnings": list(filter(None, [warn_of_repetition(epochs)])),
        "batch": batch,
    }
    draw_phase(phase)
    return phase


def draw_phase(phase: dict[str, Any]) -> None:
    """Print a phase for people."""
    console = get_console()
    console.print("", Rule(f"{phase['phase']}: {phase['epochs']:.2g} epochs of {phase['items']}"), sep="\n")
    for warning in phase["warnings"]:
        console.print(f"\nwarning: {warning}", markup=False, highlight=False)
    for source in phase["sources"]:
        console.print("", Columns([draw_numbers(source), draw_lengths(source)], padding=(1, 3)), "", sep="\n")
        common = []
        for token in source["common_tokens"]:
            text = token["text"] if token["special"] else f'"{escape_line(token["text"])}"'
            common.append(Text(f"{text} {token['count'] / source['train']['tokens']:.1%}"))
        console.print(Text("common tokens", "bold"), Columns(common, padding=(0, 3)), sep="\n")
        for example in source["examples"]:
            wrapped = draw_text(example["text"]).wrap(console, console.width)
            lines = [line for line in wrapped if line.plain.strip()]
            is_cut = len(lines) > LINES or example["is_cut"]
            shown = Text("\n").join([*lines[:LINES], *[Text("...", "dim")] * is_cut])
            tokens = format_count(example["tokens"], "token")
            console.print(Text(f"\nexample, {tokens}", "bold"), shown, sep="\n")
    legend = draw_text([{"text": "targets", "target": True, "special": False}])
    for sequence in phase["batch"]:
        padding = format_count(sequence["padding"], "token")
        rest = f", then {padding} of padding" if sequence["padding"] else ""
        title = Text.assemble("\na sequence with its ", legend, rest)
        console.print(title, Text("\n\n").join(map(draw_text, sequence["segments"])), sep="\n")
    console.print()


def draw_numbers(source: dict[str, Any]) -> Table:
    """Return a table of the numbers of both splits."""
    right = [Column(split, justify="right") for split in ("train", "val")]
    table = Table(source["source"], *right, box=None, pad_edge=False)
    table.add_row("weight", f"{source['weight']:g}")
    table.add_row("epochs", f"{source['epochs']:.2g}")
    for key, number in source["val"].items():
        if not isinstance(number, list):
            form = ".1%" if "share" in key else ","
            cells = ["" if n is None else f"{n:{form}}" for n in (source["train"].get(key), number)]
            table.add_row(key.replace("_", " "), *cells)
    return table


def draw_lengths(source: dict[str, Any]) -> Table:
    """Return a histogram of the lengths in training."""
    right = [Column(title, justify="right") for title in ("length", "items")]
    table = Table(*right, "", box=None, pad_edge=False)
    most = max(items for _, _, items in source["train"]["lengths"])
    for least, _, items in source["train"]["lengths"]:
        bar = ProgressBar(most, items, BAR, complete_style="cyan", finished_style="cyan")
        table.add_row(f"{least:,}+", f"{items:,}", bar)
    return table


def draw_text(pieces: Sequence[dict[str, Any]]) -> Text:
    """Return text with its special tokens dimmed, each turn on a line, and its targets green or in brackets."""
    plain = get_console().color_system is None or get_console().no_color
    text, after_special = Text(), False
    for target, run in groupby(pieces, lambda piece: piece["target"]):
        text.append("[[" if target and plain else "")
        for piece in run:
            text.append("\n" if piece["special"] and after_special else "")
            shown = "\n".join(map(escape_line, piece["text"].split("\n")))
            text.append(shown, "green" if target else "dim" if piece["special"] else "")
            after_special = piece["special"]
        text.append("]]" if target and plain else "")
    return text
