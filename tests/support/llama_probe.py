"""Save a random Llama with transformers, in an environment that has it; question and answer are JSON."""

import json
import sys
from typing import Any

import torch
import transformers


def answer(question: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**question["config"])).eval()
    model.save_pretrained(question["folder"], max_shard_size=question["shard"])
    ids = torch.tensor(question["ids"])
    with torch.no_grad():
        generated = model.generate(ids[:1, :8], do_sample=False, max_new_tokens=100, eos_token_id=None)
        return {"logits": model(ids).logits.tolist(), "generated": generated[0, 8:].tolist()}


print(json.dumps(answer(json.load(sys.stdin))))
