"""Describe an exported model in Markdown: its texts, losses, curve, and settings that differ from the defaults."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from niels_gpt.config import DataCfg, ModelCfg, SourceCfg
from niels_gpt.printable import escape_line
from train.artifacts.metrics import METRICS
from train.artifacts.results import PhaseResult, read_results
from train.cli.output import format_table
from train.config.schema import TrainCfgSchema
from train.report.curves import Curve, read_curve
from train.report.rows import PHASES
from train.report.tables import escape_markdown

HEAD = """---
pipeline_tag: text-generation
tags:
- niels_gpt
---
"""
TITLES = {"pretrain": "Pretraining", "sft": "SFT"}
KINDS = {
    "pydocs": "docstrings and help topics of Python",
    "synthetic": "made-up text",
    "text": "text files",
    "jsonl": "rows of JSON",
    "hf": "a data set",
}
PLACES = {"files", "val_files", "repo", "hub_dir", "cache_dir"}  # on one machine; cards are published
POINTS = 10  # of a curve, at most


def make_model_card(phase: Path, cfg: ModelCfg, parameters: int, weights: str) -> str:
    """Return the card of a model from a phase's folder, as far as the files of its run can be read.

    `weights` says which of the phase's weights the model has, as in "step 100".
    """
    run, results = phase.parent, read_results(phase.parent)
    parts = [
        f"# {_escape(run.resolve().name)}",
        f"A GPT of {parameters:,} parameters, trained with niels_gpt: {cfg.L} layers of width {cfg.C} with "
        f"{cfg.H} heads, {cfg.V:,} tokens in the vocabulary, and a context of {cfg.T:,} tokens. "
        f"Weights: {_escape(weights)}.",
    ]
    for name in PHASES[: PHASES.index(phase.name) + 1] if phase.name in PHASES else ():
        with suppress(ValueError, TypeError, KeyError, AttributeError):  # damaged files
            if result := results.get(name):
                facts = "\n".join(f"- {_escape(fact)}" for fact in _list_facts(result))
                parts.append(f"## {TITLES[name]}\n\n{facts}")
            if (curve := read_curve(run / name / METRICS)) and curve.val:
                parts.append(_format_curve(curve))
    return HEAD + "\n\n".join(parts) + "\n"


def _list_facts(result: PhaseResult) -> Iterator[str]:
    if init_from := result.settings.get("init_from"):
        yield f"Started from the weights of {Path(init_from).name}"
    data = DataCfg.model_validate_json(json.dumps(result.settings["data"]))
    for source in data.mixture():
        names = [Path(file).name for file in source.files] or ["/".join(Path(source.repo).parts[-2:])]
        other = source.model_dump(exclude=PLACES | {"kind"}, exclude_defaults=True)
        parts = [KINDS[source.kind], *names, *(f"{key}={value}" for key, value in other.items())]
        yield f"Text: {', '.join(filter(None, parts))}"
    yield f"{result.step:,} steps, {result.tokens:,} tokens"
    yield (
        f"Best validation loss: {result.best_val_loss:.4f} nats per token, {result.bits_per_byte:.3f} bits per "
        f"byte (a unigram model: {result.unigram_bits_per_byte:.3f})"
    )
    own = data.model_dump(exclude=PLACES | {"sources", *SourceCfg.model_fields}, exclude_defaults=True)
    changes = {f"data.{key}": Path(value).name if key == "tokenizer" else value for key, value in own.items()}
    usual = TrainCfgSchema().model_dump(mode="json")
    changes |= {f"train.{k}": value for k, value in result.settings["train"].items() if usual.get(k) != value}
    yield f"Settings that differ from the defaults: {', '.join(f'{k}={v}' for k, v in changes.items()) or 'none'}"


def _format_curve(curve: Curve) -> str:
    points = curve.val[:: -len(curve.val) // POINTS][::-1]  # the last is among them
    rows = [[f"{p.tokens:,.0f}", f"{p.loss:.4f}", f"{p.loss * curve.bits:.3f}"] for p in points]
    head = ["tokens", "validation loss", "bits per byte"]
    return format_table([head, *rows], right=range(3), markdown=True).strip()


def _escape(text: str) -> str:
    return escape_markdown(escape_line(text))
