"""Race generation at full context: this library and, where they are installed, transformers and llama.cpp."""

import http.client
import json
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from niels_gpt.errors import ConfigError
from niels_gpt.generation.chat import ChatSession, load_session
from niels_gpt.generation.sampling import Sampling
from niels_gpt.weights.gguf import export_gguf
from niels_gpt.weights.llama import export_llama
from train.cli.output import format_table

Take = Callable[[list[int], int], tuple[float, float]]  # prompt, tokens -> seconds for the prompt, for each token
HEAD = ("", "prompt s", "tokens/s", "ours to it")


def race_generation(run: Path, rounds: int, tokens: int) -> dict[str, Any]:
    """Let each engine continue the same ids up to the end of the context, in turns; print and return medians.

    All take the likeliest token, in float32, with the same weights and number of threads. ConfigError if the
    context has no room for a prompt before so many tokens.
    """
    session = load_session(run)
    if tokens >= (T := session.model.cfg.T):
        raise ConfigError(f"--tokens {tokens} leave no room for a prompt: the context has {T}", "ask for fewer")
    prompt = torch.randint(session.tokenizer.V, (T - tokens,)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        takes = {
            name: open_engine(session, Path(folder, name))
            for name, (needs, open_engine) in ENGINES.items()
            if all(map(find_spec, needs))
        }
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in takes}
        for _ in range(rounds):
            for name, take in takes.items():
                turns[name].append(take(prompt, tokens))
    rows, engines = [HEAD], {}
    for name, taken in turns.items():
        ratio = median(theirs[1] / own[1] for theirs, own in zip(taken, turns["ours"], strict=True))
        first, each = (median(seconds) for seconds in zip(*taken, strict=True))
        rows.append((name, f"{first:.3f}", f"{1 / each:.1f}", f"{ratio:.2f}"))
        engines[name] = {"prompt": first, "token": each, "ours_to_it": ratio, "turns": taken}
    print(format_table(rows, right=range(1, len(HEAD))), end="")
    return {"run": str(run), "tokens": tokens, "threads": torch.get_num_threads(), "engines": engines}


def open_ours(session: ChatSession, folder: Path) -> Take:
    """Stream tokens as `sample` does."""

    def take(prompt: list[int], count: int) -> tuple[float, float]:
        session.generator.cache.ids.clear()  # else it would know the prompt
        began, sampling = time.perf_counter(), Sampling(max_tokens=count, temperature=0, ignore_eos=True)
        stamps = [time.perf_counter() for _ in session.generator.stream(prompt, sampling)]
        return stamps[0] - began, (stamps[-1] - stamps[0]) / (count - 1)

    return take


def open_transformers(session: ChatSession, folder: Path) -> Take:
    """Call `generate` on the exported folder, with its cache and the attention that it chooses."""
    import transformers

    export_llama(session.model, session.tokenizer, folder)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def take(prompt: list[int], count: int) -> tuple[float, float]:
        stamps: list[float] = []
        watch = SimpleNamespace(put=lambda _: stamps.append(time.perf_counter()), end=lambda: None)
        began = time.perf_counter()
        length = {"max_new_tokens": count, "min_new_tokens": count}
        model.generate(torch.tensor([prompt]), do_sample=False, streamer=watch, **length)
        return stamps[1] - began, (stamps[-1] - stamps[1]) / (count - 1)  # the first is of the prompt

    return take


def open_llama_cpp(session: ChatSession, folder: Path) -> Take:
    """Ask llama.cpp's server in this process, and take the times that it reports."""
    import xllamacpp

    export_gguf(session.model, session.tokenizer, folder, "model", dtype="float32")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(folder / "model-F32.gguf"), session.model.cfg.T, 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.verbosity = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(params)

    def take(prompt: list[int], count: int) -> tuple[float, float]:
        asked = {"prompt": prompt, "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        connection = http.client.HTTPConnection(server.listening_address.partition("//")[2])
        connection.request("POST", "/completion", json.dumps(asked), {"Content-Type": "application/json"})
        times = json.loads(connection.getresponse().read())["timings"]
        return times["prompt_ms"] / 1000, times["predicted_ms"] / 1000 / times["predicted_n"]

    return take


ENGINES: dict[str, tuple[tuple[str, ...], Callable[[ChatSession, Path], Take]]] = {
    "ours": ((), open_ours),
    "transformers": (("transformers", "safetensors"), open_transformers),
    "llama.cpp": (("xllamacpp", "gguf"), open_llama_cpp),
}
