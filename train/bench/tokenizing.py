"""Measure how generated text is tokenized: MB/s beside the library's own call, peak memory, and a warm start."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate, count, islice
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from tokenizers import Tokenizer

from niels_gpt.config import DataCfg
from niels_gpt.data.cache.token_cache import open_cache
from niels_gpt.device import measure_memory
from niels_gpt.tokenizer import load_tokenizer, train_bpe
from train.bench.contestants import CPU
from train.bench.race import run_worker
from train.cli.output import format_table

V = 4096
LEARNED, BATCH = 6000, 1000  # documents that the tokenizer learns from, and that the library encodes at once
LIBRARY_MB = 100  # of the text are encoded by the library, at most
MARK = "<|endoftext|>"
SETTINGS: dict[str, dict[str, str]] = {
    "text": {"kind": "text", "separator": MARK},
    "jsonl": {"kind": "jsonl"},
    "whole": {"kind": "text"},
}
HEAD = ("MB", "MB/s", "library's", "ratio", "MB/CPU s", "library's", "ratio", "peak MB", "warm start s")


def make_documents() -> Iterator[str]:
    """Yield documents of some 800 characters without end, the same ones every time."""
    draw = Random(0)  # noqa: S311
    words = ["".join(draw.choices("etaoinshrdlucmfwyp", k=draw.randint(2, 11))) for _ in range(20_000)]
    words.sort(key=lambda word: len(word) + draw.gauss(0, 2.5))  # the common words are short
    weights = list(accumulate(1 / (n + 3) for n in range(len(words))))
    drawn = draw.choices(words, cum_weights=weights, k=1_000_000)
    sentences = [" ".join(drawn[n : n + 12]).capitalize() + "." for n in range(0, len(drawn), 12)]
    for number in count():
        yield f"Story {number}. " + " ".join(draw.choices(sentences, k=draw.randint(7, 15)))


def write_documents(path: Path, form: str, megabytes: int) -> None:
    """Write a file of documents: with a mark after each, as rows of JSON, or as one whole text."""
    ends, documents, size = {"text": f"\n{MARK}\n", "whole": "\n\n"}, make_documents(), 0
    with path.open("w", encoding="ascii") as file:
        while size < megabytes * 1_000_000:
            text = next(documents)
            size += file.write(json.dumps({"text": text}) + "\n" if form == "jsonl" else text + ends[form])


def measure_tokenizing(sizes: list[int], form: str, rounds: int) -> dict[str, Any]:
    """Build token files of each size in MB in turns with the library, all in fresh processes; print a table."""
    found: dict[str, Any] = {}
    rows: list[tuple[str, ...]] = [HEAD]
    with tempfile.TemporaryDirectory(dir=".") as name:
        train_bpe(islice(make_documents(), LEARNED), V).save(Path(name, "tokenizer.json"))
        for size in sizes:
            write_documents(Path(name, "text"), form, size)
            asked = {"folder": name, "settings": SETTINGS[form], "size": size}
            turns = []
            for _ in range(rounds):
                shutil.rmtree(Path(name, "cache"), ignore_errors=True)
                turns.append([run_worker(task, asked) for task in ("build_token_files", "encode_batches")])
            warm = run_worker("build_token_files", asked)["wall"] * size
            each = ({key: median(turn[n][key] for turn in turns) for key in ("wall", "cpu")} for n in (0, 1))
            (ours, library), peak = each, max(turn[0]["peak"] for turn in turns)
            speeds = [(1 / ours[key], 1 / library[key], library[key] / ours[key]) for key in ours]
            cells = [f"{number:.2f}" for numbers in speeds for number in numbers]
            rows.append((str(size), *cells, f"{peak / 1e6:.0f}", f"{warm:.2f}"))
            found[str(size)] = {"ours": ours, "library": library, "peak": peak, "warm": warm, "turns": turns}
    print(format_table(rows, right=range(len(HEAD))))
    return {"form": form, "sizes": found}


def build_token_files(asked: dict[str, Any]) -> dict[str, float]:
    """Return the wall and CPU seconds per MB, and the peak of memory above the interpreter's with its imports."""
    folder = asked["folder"]
    cfg = DataCfg(files=(f"{folder}/text",), cache_dir=f"{folder}/cache", **asked["settings"])
    tokenizer, before = load_tokenizer(Path(folder, "tokenizer.json")), measure_memory(CPU)
    began, cpu = time.perf_counter(), time.process_time()
    cache = open_cache(cfg.mixture()[0], "documents", tokenizer, cfg, 0)
    for split in ("train", "val"):
        cache.open(split)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"wall": wall / asked["size"], "cpu": cpu / asked["size"], "peak": measure_memory(CPU) - before}


def encode_batches(asked: dict[str, Any]) -> dict[str, float]:
    """Return the wall and CPU seconds per MB of the library's call alone."""
    library = Tokenizer.from_file(f"{asked['folder']}/tokenizer.json")
    wall = cpu = size = 0.0
    documents = make_documents()
    while size < min(LIBRARY_MB, asked["size"]):
        batch = list(islice(documents, BATCH))
        size += sum(map(len, batch)) / 1e6
        began, cpu_before = time.perf_counter(), time.process_time()
        library.encode_batch_fast(batch, add_special_tokens=False)
        wall, cpu = wall + time.perf_counter() - began, cpu + time.process_time() - cpu_before
    return {"wall": wall / size, "cpu": cpu / size}
