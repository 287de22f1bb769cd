"""OpenAI's own client, unchanged but for its base_url, understands the answers."""

from pathlib import Path

import pytest
from support.environments import ask, make_environment
from support.served import serving

pytestmark = pytest.mark.long


def test_openai_s_client_works_unchanged(finished_run: Path, tmp_path: Path) -> None:
    python = make_environment("openai", "openai")
    with serving(str(finished_run), "--api-key", "sesame", cwd=tmp_path) as served:
        said = ask(python, "openai_probe", {"url": f"http://127.0.0.1:{served.port}/v1", "key": "sesame"})
    assert said["models"] == ["run"] and said["refused"] == ["model_not_found", "model"]
    first, second = said["choices"]
    assert first["message"]["content"] != second["message"]["content"] and second["index"] == 1
    entries = first["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries).strip("\ufffd") and len(entries[0]["top_logprobs"]) == 2
    assert said["usage"]["completion_tokens"] == 24 and said["chunk_usage"]["completion_tokens"] == 12
    assert said["chunks"] and said["pieces"] == said["text"]["text"]
    assert len(said["text"]["logprobs"]["top_logprobs"]) == 5 and said["text"]["finish_reason"] == "length"
