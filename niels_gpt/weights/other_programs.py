"""A script that asks another program about an export, in a process of its own, since the program may crash.

Question and answer are JSON, on stdin and in the last line of stdout.
"""

import http.client
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

END = -1  # stands for any id that ends a text or an answer
Generated = tuple[list[int], Sequence[float | None]]  # ids, and log probabilities of those that were sampled


class Transformers:
    """transformers, which computes in float32 whatever the type of the weights."""

    def __init__(self, folder: Path, context: int) -> None:
        import torch
        import transformers

        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.ends: list[int] = self.model.generation_config.eos_token_id

    def encode(self, text: str) -> Any:
        """Return the ids of a text, in which special tokens are text."""
        return self.tokenizer.encode(text, split_special_tokens=True)

    def encode_chat(self, messages: list[dict[str, str]]) -> Any:
        """Return the ids of a dialogue and of the start of an answer."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def generate(self, prompt: list[int], count: int, seed: int | None) -> Generated:
        """Return the likeliest ids, up to an end; with a seed sampled ones, none an end."""
        import torch

        torch.manual_seed(seed or 0)
        how = {} if seed is None else {"do_sample": True, "top_k": 0, "suppress_tokens": self.ends}
        how |= {"max_new_tokens": count, "return_dict_in_generate": True, "output_logits": True}
        x = torch.tensor([prompt])
        said = self.model.generate(x, attention_mask=torch.ones_like(x), **how)
        ids = said.sequences[0, len(prompt) :].tolist()
        scores = [float(logits[0].log_softmax(-1)[id]) for id, logits in zip(ids, said.logits, strict=True)]
        return [END if id in self.ends else id for id in ids], scores


class MlxLm(Transformers):
    """mlx-lm, which computes in float32 whatever the type of the weights; it has the tokenizer of transformers."""

    def __init__(self, folder: Path, context: int) -> None:
        import mlx.core as mx
        import mlx_lm

        self.model, self.tokenizer = mlx_lm.load(str(folder))[:2]
        self.model.set_dtype(mx.float32)
        self.ends = list(self.tokenizer.eos_token_ids)

    def generate(self, prompt: list[int], count: int, seed: int | None) -> Generated:
        """Generate as above."""
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        def choose(scores: Any) -> Any:
            if seed is None:
                return mx.argmax(scores, axis=-1)
            scores[:, self.ends] = -mx.inf
            return mx.random.categorical(scores)

        mx.random.seed(seed or 0)
        ids: list[int] = []
        chosen: list[float] = []
        for id, scores in generate_step(mx.array(prompt), self.model, max_tokens=count, sampler=choose):
            ids.append(END if id in self.ends else int(id))
            chosen.append(float(scores[id]))
            if ids[-1] == END:
                break
        return ids, chosen


class LlamaCpp:
    """llama.cpp's server in this process, with attention and its cache in float32."""

    def __init__(self, folder: Path, context: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(next(folder.glob("*.gguf")))
        params.n_ctx, params.n_parallel, params.warmup = context, 1, False
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        self._server = xllamacpp.Server(params)
        self._connection = http.client.HTTPConnection(self._server.listening_address.partition("//")[2])

    def _post(self, path: str, **content: Any) -> Any:
        self._connection.request("POST", path, json.dumps(content), {"Content-Type": "application/json"})
        return json.loads(self._connection.getresponse().read())

    def encode(self, text: str) -> Any:
        """Encode as above."""
        return self._post("/tokenize", content=text, add_special=False, parse_special=False)["tokens"]

    def encode_chat(self, messages: list[dict[str, str]]) -> Any:
        """Encode as above."""
        prompt = self._post("/apply-template", messages=messages)["prompt"]
        return self._post("/tokenize", content=prompt, add_special=True)["tokens"]

    def generate(self, prompt: list[int], count: int, seed: int | None) -> Generated:
        """Generate as above."""
        if seed is None:
            said = self._complete(prompt, count, temperature=0, samplers=["top_k"], top_k=1)
            return [*said["tokens"][:-1], END] if said["stop_type"] == "eos" else said["tokens"], []
        ids: list[int] = []
        scores: list[float | None] = []
        for n in range(count):  # one by one: it has no score where a token ends within a character
            how = {"temperature": 1, "samplers": ["temperature"], "ignore_eos": True, "n_probs": 1}
            said = self._complete(prompt + ids, 1, seed=seed * count + n, **how)
            ids += said["tokens"]
            scores += [token["logprob"] for token in said.get("completion_probabilities", [])] or [None]
        return ids, scores

    def _complete(self, prompt: list[int], count: int, **how: Any) -> Any:
        return self._post("/completion", prompt=prompt, n_predict=count, return_tokens=True, **how)


PROGRAMS: dict[str, Any] = {"transformers": Transformers, "mlx-lm": MlxLm, "xllamacpp": LlamaCpp}


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Return the ids of texts and of a chat, and what a program generates from prompts."""
    program = PROGRAMS[question["program"]](Path(question["folder"]), question["context"])
    return {
        "version": version(question["program"]),
        "texts": [program.encode(text) for text in question["texts"]],
        "chat": program.encode_chat(question["chat"]),
        "generated": [program.generate(*request) for request in question["requests"]],
    }


if __name__ == "__main__":
    print(f"\n{json.dumps(answer(json.load(sys.stdin)))}", flush=True)
    os._exit(0)  # llama.cpp's server need not end
