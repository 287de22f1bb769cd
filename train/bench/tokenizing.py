"""Measure how generated text is tokenized: MB/s beside the library's own call, peak memory, and a warm start."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate, islice
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import tokenizers

from niels_gpt.config import DataCfg
from niels_gpt.data.token_cache import open_cache
from niels_gpt.device import measure_memory
from niels_gpt.tokenizer import load_tokenizer, train_bpe
from train.bench.contestants import CPU
from train.bench.race import run_worker
from train.cli.output import format_table

V = 4096
MARK = "<|endoftext|>"
SETTINGS: dict[str, dict[str, Any]] = {  # of many documents in a text, of as many rows, and of one document
    "text": {"kind": "text", "separator": MARK},
    "jsonl": {"kind": "jsonl"},
    "whole": {"kind": "text"},
}
BATCH = 1000  # documents encoded at once by the library
LEARNED = 6000  # documents that the tokenizer learns from
RACED = 100_000_000  # bytes at most that the library encodes; it would take as long for each as for these
HEAD = (
    *("MB", "MB/s", "MB/CPU s", "library's MB/s", "MB/CPU s", "times as fast", "by CPU", "peak MB"),
    "warm start s",
)


def make_documents() -> Iterator[str]:
    """Yield documents of some 800 characters without end, the same ones every time."""
    draw = Random(0)  # noqa: S311
    words = ["".join(draw.choices("etaoinshrdlucmfwyp", k=draw.randint(2, 11))) for _ in range(20_000)]
    words.sort(key=lambda word: len(word) + draw.gauss(0, 2.5))  # the common words are short
    weights = list(accumulate(1 / (n + 3) for n in range(len(words))))
    while True:
        drawn = draw.choices(words, cum_weights=weights, k=draw.randint(100, 190))
        sentences = (" ".join(drawn[n : n + 11]).capitalize() for n in range(0, len(drawn), 11))
        yield ". ".join(sentences) + "."


def write_documents(path: Path, form: str, megabytes: int) -> None:
    """Write a file of documents, of `megabytes` or just above."""
    ends = {"text": f"\n{MARK}\n", "whole": "\n\n"}
    with path.open("w", encoding="ascii") as file:
        for document in make_documents():
            file.write(json.dumps({"text": document}) + "\n" if form == "jsonl" else document + ends[form])
            if file.tell() >= megabytes * 1_000_000:
                break


def measure_tokenizing(sizes: list[int], form: str, rounds: int) -> dict[str, Any]:
    """Build the token files of each size in MB, each time in a fresh process; print a table.

    The builds and the library, which encodes the same documents, take turns; the medians count.
    """
    found: dict[str, Any] = {}
    rows: list[tuple[str, ...]] = [HEAD]
    with tempfile.TemporaryDirectory(dir=".") as name:
        tokenizer = f"{name}/tokenizer.json"
        train_bpe(islice(make_documents(), LEARNED), V).save(Path(tokenizer))
        for size in sizes:
            write_documents(Path(name, "text"), form, size)
            settings = SETTINGS[form] | {"files": [f"{name}/text"]}
            turns: dict[str, list[dict[str, float]]] = {"ours": [], "library": []}
            for _ in range(rounds):
                shutil.rmtree(f"{name}/cache", ignore_errors=True)
                asked = {"data": settings | {"cache_dir": f"{name}/cache"}, "tokenizer": tokenizer, "size": size}
                turns["ours"].append(run_worker("build_token_files", asked))
                turns["library"].append(run_worker("encode_batches", asked))
            warm = run_worker("build_token_files", asked)
            facts = {
                who: {key: median(turn[key] for turn in taken) for key in taken[0]} for who, taken in turns.items()
            }
            ours, library = facts["ours"], facts["library"]
            found[f"{size}"] = facts | {"warm": warm, "turns": turns}
            speeds = [f"{number:.2f}" for who in (ours, library) for number in (1 / who["wall"], 1 / who["cpu"])]
            ratios = [f"{library[key] / ours[key]:.2f}" for key in ("wall", "cpu")]
            rows.append((f"{size}", *speeds, *ratios, f"{ours['peak'] / 1e6:.0f}", f"{warm['wall'] * size:.2f}"))
    print(format_table(rows))
    return {"form": form, "sizes": found}


def build_token_files(asked: dict[str, Any]) -> dict[str, float]:
    """Return the wall and CPU seconds per MB, and the peak of memory above the interpreter's with its imports."""
    cfg, tokenizer = DataCfg.model_validate(asked["data"]), load_tokenizer(Path(asked["tokenizer"]))
    before, wall, cpu = measure_memory(CPU), time.perf_counter(), time.process_time()
    cache = open_cache(cfg.mixture()[0], "documents", tokenizer, cfg, 0)
    for split in ("train", "val"):
        cache.open(split)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall / asked["size"], "cpu": cpu / asked["size"], "peak": measure_memory(CPU) - before}


def encode_batches(asked: dict[str, Any]) -> dict[str, float]:
    """Return the wall and CPU seconds per MB of the library alone, for at most RACED bytes."""
    library = tokenizers.Tokenizer.from_file(asked["tokenizer"])
    wall = cpu = size = 0.0
    documents = make_documents()
    while size < min(RACED, asked["size"] * 1e6):
        batch = list(islice(documents, BATCH))
        size += sum(map(len, batch))
        wall, cpu = wall - time.perf_counter(), cpu - time.process_time()
        library.encode_batch_fast(batch, add_special_tokens=False)
        wall, cpu = wall + time.perf_counter(), cpu + time.process_time()
    return {"wall": wall * 1e6 / size, "cpu": cpu * 1e6 / size}
