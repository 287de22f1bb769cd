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


print(json.dumps(answer(json.load(sys.stdin))))
