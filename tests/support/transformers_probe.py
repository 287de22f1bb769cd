"""Read an exported folder with transformers, in an environment that has it; question and answer are JSON."""

import json
import sys
from typing import Any

import torch
import transformers


def answer(question: dict[str, Any]) -> dict[str, Any]:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(question["folder"])
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(question["folder"], dtype=torch.float32)
    texts, greedy = question["texts"], {"do_sample": False, "max_new_tokens": question["count"]}
    chats = [
        tokenizer.apply_chat_template(dialogue, return_dict=True, return_assistant_tokens_mask=True)
        for dialogue in question["dialogues"]
    ]
    asked = tokenizer.apply_chat_template(
        question["dialogues"][0][:1], add_generation_prompt=True, return_dict=True
    )
    batch = tokenizer(question["prompts"], padding=True, return_tensors="pt")
    generated = model.generate(**batch, **greedy)
    with torch.no_grad():
        logits = model(torch.tensor(question["ids"])).logits
    return {
        "version": transformers.__version__,
        "ids": tokenizer(texts).input_ids,
        "texts": tokenizer.batch_decode(tokenizer(texts).input_ids, skip_special_tokens=True),
        "dialogues": [[chat["input_ids"], chat["assistant_masks"]] for chat in chats],
        "prompt": asked["input_ids"],
        "padding": batch["attention_mask"].tolist(),
        "generated": generated[:, batch["input_ids"].shape[1] :].tolist(),
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "length": tokenizer.model_max_length,
        "logits": logits.tolist(),
    }


def measure_loss(question: dict[str, Any]) -> dict[str, Any]:
    """Return the loss per token over texts in sliding windows, as in the library's guide to perplexity."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(question["folder"], dtype=torch.float32)
    nats, count = 0.0, 0
    for ids in torch.tensor(question["ids"]).split(question["lengths"]):
        previous = 1  # the first token has nothing before it
        for begin in range(0, len(ids), question["stride"]):
            end = min(begin + question["max_length"], len(ids))
            inputs = ids[None, begin:end]
            targets = inputs.clone()
            targets[:, : previous - begin] = -100
            with torch.no_grad():
                nats += model(inputs, labels=targets).loss.item() * (end - previous)
            count += end - previous
            previous = end
            if end == len(ids):
                break
    return {"loss": nats / count, "tokens": count}


question = json.load(sys.stdin)
print(json.dumps((measure_loss if "stride" in question else answer)(question)))
