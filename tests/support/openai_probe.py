"""Ask a server by OpenAI's own client, in an environment that has it; prints the answers as JSON."""

import json
import sys
from typing import Any

from openai import NotFoundError, OpenAI

question = json.load(sys.stdin)
client = OpenAI(base_url=question["url"], api_key=question["key"])
messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
asked: Any = {
    "model": "run",
    "messages": messages,
    "seed": 1,
    "max_tokens": 12,
    "logprobs": True,
    "top_logprobs": 2,
}
whole = client.chat.completions.create(**asked, n=2, temperature=0.9, extra_body={"top_k": 5})
streamed = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
chunks = list(streamed)
text = client.completions.create(model="run", prompt="a", max_tokens=5, logprobs=2, stop=["zzz"], seed=3)
pieces = list(client.completions.create(model="run", prompt="a", max_tokens=5, seed=3, stream=True))
try:
    client.chat.completions.create(model="gpt-4", messages=messages)
except NotFoundError as error:
    refused = [error.code, error.param]
answer = {
    "models": [model.id for model in client.models.list()],
    "choices": [choice.model_dump() for choice in whole.choices],
    "usage": whole.usage.model_dump() if whole.usage else None,
    "chunks": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
    "chunk_usage": chunks[-1].usage.model_dump() if chunks[-1].usage else None,
    "text": text.choices[0].model_dump(),
    "pieces": "".join(piece.choices[0].text for piece in pieces),
    "refused": refused,
}
print(json.dumps(answer))
