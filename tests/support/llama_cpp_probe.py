"""Read a GGUF file with llama.cpp, in an environment that has xllamacpp; question and answer are JSON."""

import http.client
import json
import os
import sys
from importlib.metadata import version
from typing import Any

import xllamacpp


class Server:
    """llama.cpp's own server in this process, with attention and its cache in float32."""

    def __init__(self, path: str, context: int) -> None:
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.warmup = path, context, 1, False
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        self._server = xllamacpp.Server(params)
        self._connection = http.client.HTTPConnection(self._server.listening_address.partition("//")[2])

    def post(self, path: str, **content: Any) -> Any:
        self._connection.request("POST", path, json.dumps(content), {"Content-Type": "application/json"})
        return json.loads(self._connection.getresponse().read())

    def complete(self, prompt: list[int] | str, count: int, **more: Any) -> Any:
        """Return the likeliest continuation, and why it ends."""
        greedy = {"temperature": 0, "samplers": ["top_k"], "top_k": 1, "return_tokens": True}
        return self.post("/completion", prompt=prompt, n_predict=count, **greedy, **more)

    def generate(self, prompt: list[int] | str, count: int) -> tuple[list[int], str]:
        said = self.complete(prompt, count)
        return said["tokens"], said["stop_type"]

    def score(self, ids: list[int], V: int) -> list[float]:
        """Return the log probability of each id but the first, given those before it."""
        scores = []
        for n in range(1, len(ids)):
            # Whatever it samples, it returns the probabilities before that, but none with an end.
            (token,) = self.complete(ids[:n], 1, n_probs=V, ignore_eos=True)["completion_probabilities"]
            scores += [found["logprob"] for found in token["top_logprobs"] if found["id"] == ids[n]]
        return scores


def answer(question: dict[str, Any]) -> dict[str, Any]:
    server = Server(question["path"], question["context"])
    words: dict[str, Any] = {"parse_special": False, "add_special": False}
    count = question["count"]
    chats = [server.post("/apply-template", messages=dialogue)["prompt"] for dialogue in question["dialogues"]]
    return {
        "version": version("xllamacpp"),
        "ids": [server.post("/tokenize", content=text, **words)["tokens"] for text in question["texts"]],
        "chats": [
            (server.post("/tokenize", content=chat, add_special=True)["tokens"], *server.generate(chat, count))
            for chat in chats
        ],
        "generated": [server.generate(prompt, count) for prompt in question["prompts"]],
        "scores": [server.score(ids, question["V"]) for ids in question["windows"]],
    }


print(json.dumps(answer(json.load(sys.stdin))))
sys.stdout.flush()
os._exit(0)  # the server need not end
