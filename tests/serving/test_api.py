"""The API, without a server process: OpenAI's forms, the library's answers, and refusals."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.served import read_events

from niels_gpt.data.chat_template import encode_prompt
from niels_gpt.data.readers.records import Message
from niels_gpt.generation.generate import Generator, Token
from niels_gpt.generation.sampling import Sampling
from niels_gpt.serving.app import ServedModel, make_app
from niels_gpt.serving.worker import Worker
from niels_gpt.weights.trained_model import open_model

HI = [{"role": "user", "content": "hi"}]
LONG = {"prompt": "a", "max_tokens": 16384, "ignore_eos": True}


@pytest.fixture(scope="module")
def models(finished_run: Path) -> list[ServedModel]:
    """A model that chats and one that is pretrained only."""
    opened = {"chat": open_model(finished_run)[:3], "base": open_model(finished_run / "pretrain")[:3]}
    return [
        ServedModel(name, Generator(m, t), chats, {"best_val_loss": 2.5}) for name, (m, t, chats) in opened.items()
    ]


@pytest.fixture(scope="module")
def client(models: list[ServedModel]) -> Iterator[TestClient]:
    worker = Worker(queue=4)
    worker.start()
    with TestClient(make_app(models, worker)) as client:
        yield client
    worker.close()


def chat(client: TestClient, **body: Any) -> Any:
    """Return the answer to a chat, which is accepted."""
    response = client.post("/v1/chat/completions", json={"messages": HI, "max_tokens": 6} | body)
    assert response.status_code == 200, response.text
    return read_events(response.iter_lines()) if body.get("stream") else response.json()


def complete(client: TestClient, **body: Any) -> Any:
    response = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 6} | body)
    assert response.status_code == 200, response.text
    return read_events(response.iter_lines()) if body.get("stream") else response.json()


def expect(model: ServedModel, prompt: list[int], **sampling: Any) -> list[Token]:
    """Return the tokens of the library."""
    return [*Generator(model.generator.model, model.generator.tokenizer).stream(prompt, Sampling(**sampling))]


def text_of(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


def test_a_chat_has_the_answer_of_the_library_in_openai_s_form(
    client: TestClient, models: list[ServedModel]
) -> None:
    said = [
        Message("system", "Be brief."),
        Message("user", "a\nb"),
        Message("assistant", "c"),
        Message("user", "d"),
    ]
    prompt = encode_prompt(said, models[0].generator.tokenizer)
    tokens = expect(models[0], prompt, max_tokens=6, seed=3, top_p=0.9, min_p=0.01, repetition_penalty=1.5)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    answer = chat(
        client, seed=3, top_p=0.9, min_p=0.01, repetition_penalty=1.5, user="me", metadata={}, frequency_penalty=0,
        messages=[
            {"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts, "name": "x"},
            {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"},
        ],
    )  # fmt: skip
    assert answer.pop("id").startswith("chatcmpl-") and isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "chat.completion",
        "model": "chat",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text_of(tokens)},
                "logprobs": None,
                "finish_reason": tokens[-1].finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(tokens),
            "total_tokens": len(prompt) + len(tokens),
        },
    }


def test_a_completion_continues_each_prompt_n_times_with_seeds_that_follow(
    client: TestClient, models: list[ServedModel]
) -> None:
    answer = complete(client, model="base", prompt=["a", "b"], n=2, seed=7, max_completion_tokens=5)
    special, encode = models[1].generator.tokenizer.special, models[1].generator.tokenizer.encode
    wanted = [
        expect(models[1], [special["<|end_of_text|>"], *encode(prompt)], max_tokens=5, seed=seed)
        for prompt in "ab"
        for seed in (7, 8)
    ]
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        *enumerate(map(text_of, wanted))
    ]
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 20, "total_tokens": 24}


def test_without_a_seed_answers_differ_and_with_one_they_are_equal(client: TestClient) -> None:
    assert len({chat(client)["choices"][0]["message"]["content"] for _ in range(4)}) > 1
    assert len({chat(client, seed=-1)["choices"][0]["message"]["content"] for _ in range(4)}) == 1


@pytest.mark.parametrize("ask", [chat, complete])
def test_a_stream_has_the_same_text_and_its_usage_if_asked_for(client: TestClient, ask: Any) -> None:
    body = {"seed": 5, "n": 2, "max_tokens": 12}
    whole = ask(client, **body)
    *chunks, last = ask(client, **body, stream=True, stream_options={"include_usage": True})
    assert last["usage"] == whole["usage"] and last["choices"] == []
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        (last["id"], last["created"], "chat")
    }
    for n, choice in enumerate(whole["choices"]):
        parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == n]
        texts = [part["delta"]["content"] if ask is chat else part["text"] for part in parts]
        assert "".join(texts) == (choice["message"]["content"] if ask is chat else choice["text"])
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]
    kind = "chat.completion.chunk" if ask is chat else "text_completion"
    assert {chunk["object"] for chunk in chunks} == {kind}
    assert "usage" not in ask(client, **body, stream=True)[-1]
    counted = ask(client, **body, stream=True, stream_options={"continuous_usage_stats": True})
    assert counted[-1]["usage"] == whole["usage"] and counted[0]["usage"]["completion_tokens"] == 1


def test_log_probabilities_have_the_forms_of_both_endpoints(client: TestClient, models: list[ServedModel]) -> None:
    tokenizer = models[0].generator.tokenizer
    wanted = expect(
        models[0], encode_prompt([Message("user", "hi")], tokenizer), max_tokens=6, seed=1, alternatives=3
    )
    content = chat(client, seed=1, logprobs=True, top_logprobs=3)["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == [tokenizer.decode([token.id]) for token in wanted]
    assert [entry["logprob"] for entry in content] == [token.logprob for token in wanted]
    for entry, token in zip(content, wanted, strict=True):
        top = [(other["token"], other["logprob"]) for other in entry["top_logprobs"]]
        assert [logprob for _, logprob in top] == [logprob for _, _, logprob in token.alternatives]
    said = b"".join(bytes(entry["bytes"]) for entry in content)  # also of parts of characters
    assert said == tokenizer.decode_bytes(token.id for token in wanted)
    chunks = chat(client, seed=1, logprobs=True, top_logprobs=3, stream=True)
    assert [entry for chunk in chunks for entry in chunk["choices"][0]["logprobs"]["content"]] == content

    whole = complete(client, seed=2, logprobs=2)["choices"][0]["logprobs"]
    assert whole["text_offset"] == [sum(map(len, whole["tokens"][:n])) for n in range(6)]
    assert all(len(top) == 2 and math.log(1e-9) < min(top.values()) for top in whole["top_logprobs"])
    parts = [chunk["choices"][0]["logprobs"] for chunk in complete(client, seed=2, logprobs=2, stream=True)]
    assert {name: [value for part in parts for value in part[name]] for name in whole} == whole


def test_the_end_of_an_answer_counts_but_is_not_among_its_tokens(client: TestClient) -> None:
    likely = set[str]()
    for seed in range(50):
        answer = chat(client, seed=seed, max_tokens=200, top_k=0, temperature=2.0, logprobs=True, top_logprobs=20)
        (choice,) = answer["choices"]
        entries = choice["logprobs"]["content"]
        likely |= {other["token"] for entry in entries for other in entry["top_logprobs"]}
        if choice["finish_reason"] == "stop":
            break
    assert answer["usage"]["completion_tokens"] == len(entries) + 1
    assert "" not in likely and any(token.startswith("<|") for token in likely), "special tokens have names"


def test_a_stop_text_ends_an_answer_before_it(client: TestClient) -> None:
    whole = complete(client, seed=4, max_tokens=40)["choices"][0]["text"]
    for stop in (whole[9:11], ["nowhere", whole[9:11]]):
        (choice,) = complete(client, seed=4, max_tokens=40, stop=stop)["choices"]
        assert choice["finish_reason"] == "stop" and choice["text"] == whole[: whole.index(whole[9:11])]


def test_models_are_listed_with_what_a_client_may_want_to_know(
    client: TestClient, models: list[ServedModel]
) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == ["chat", "base"]
    assert [client.get(f"/v1/models/{name}").json() for name in ("chat", "base")] == listed["data"]
    first = listed["data"][0]
    assert first["object"] == "model" and first["owned_by"] == "niels_gpt" and first["chats"]
    assert not listed["data"][1]["chats"] and first["best_val_loss"] == 2.5
    assert first["context"] == 64 and first["parameters"] == models[0].generator.model.parameter_count()


def test_the_page_can_reach_nothing_but_this_server(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html") and "<title>" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy


COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
NESTED = b'{"prompt": "a", "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
REFUSED: list[tuple[str, Any, int, str | None]] = [
    (COMPLETIONS, b"", 400, None),
    (COMPLETIONS, b"[]", 400, None),
    (COMPLETIONS, b'{"prompt": "a"', 400, None),
    (COMPLETIONS, NESTED, 400, None),
    (COMPLETIONS, b'{"prompt": "a\0"}', 400, None),
    (COMPLETIONS, b'{"prompt": "\\ud800"}', 400, None),
    (COMPLETIONS, b'{"prompt": "\xff"}', 400, None),
    (COMPLETIONS, b'{"prompt": "a", "temperature": NaN}', 400, None),
    (COMPLETIONS, b'{"prompt": "a", "temperature": 1e999}', 400, "temperature"),
    (COMPLETIONS, b'{"prompt": "a", "seed": 1' + b"0" * 4000 + b"}", 400, "seed"),
    (COMPLETIONS, b'{"prompt": "a", "seed": 1' + b"0" * 9000 + b"}", 400, None),
    (COMPLETIONS, {}, 400, "prompt"),
    (COMPLETIONS, {"prompt": "a\0"}, 400, "prompt.0"),
    (COMPLETIONS, {"prompt": 3}, 400, "prompt"),
    (COMPLETIONS, {"prompt": [1, 2]}, 400, "prompt.0"),
    (COMPLETIONS, {"prompt": []}, 400, "prompt"),
    (COMPLETIONS, {"prompt": ["a"] * 17}, 400, "n"),
    (COMPLETIONS, {"prompt": "a", "n": 17}, 400, "n"),
    (COMPLETIONS, {"prompt": "a", "n": True}, 400, "n"),
    (COMPLETIONS, {"prompt": "a", "n": "1"}, 400, "n"),
    (COMPLETIONS, {"prompt": "a", "n": 10**30}, 400, "n"),
    (COMPLETIONS, {"prompt": "a", "n": 2, "max_tokens": 10_000}, 400, "max_tokens"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
    (COMPLETIONS, {"prompt": "a", "temperature": -1}, 400, "temperature"),
    (COMPLETIONS, {"prompt": "a", "temperature": "hot"}, 400, "temperature"),
    (COMPLETIONS, {"prompt": "a", "top_p": 1.5}, 400, "top_p"),
    (COMPLETIONS, {"prompt": "a", "seed": 1 << 64}, 400, "seed"),
    (COMPLETIONS, {"prompt": "a", "stop": [""]}, 400, "stop"),
    (COMPLETIONS, {"prompt": "a", "stop": ["a"] * 17}, 400, "stop"),
    (COMPLETIONS, {"prompt": "a", "stop": {"a": 1}}, 400, "stop"),
    (COMPLETIONS, {"prompt": "a", "logprobs": 21}, 400, "logprobs"),
    (COMPLETIONS, {"prompt": "a", "stream": 1}, 400, "stream"),
    (COMPLETIONS, {"prompt": "a", "stream_options": []}, 400, "stream_options"),
    (COMPLETIONS, {"prompt": "a", "presence_penalty": 0.5}, 400, "presence_penalty"),
    (COMPLETIONS, {"prompt": "a", "logit_bias": {"5": 1}}, 400, "logit_bias"),
    (COMPLETIONS, {"prompt": "a", "echo": True}, 400, "echo"),
    (COMPLETIONS, {"prompt": "a", "model": "gpt-4"}, 404, "model"),
    (COMPLETIONS, {"prompt": "a", "model": ["chat"]}, 400, "model"),
    (CHAT, {}, 400, "messages"),
    (CHAT, {"messages": []}, 400, "messages"),
    (CHAT, {"messages": "hi"}, 400, "messages"),
    (CHAT, {"messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": {}}]}, 400, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, 400, "messages.0.content"),
    (CHAT, {"messages": HI, "tools": [{"type": "function"}]}, 400, "tools"),
    (CHAT, {"messages": HI, "response_format": {"type": "json_object"}}, 400, "response_format"),
    (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
    (CHAT, {"messages": HI, "model": "base"}, 400, "model"),
    ("/v1/embeddings", {"input": "a"}, 404, None),
    ("/v1/models", {}, 405, None),
    (COMPLETIONS, {"prompt": "a" * (1 << 20)}, 413, None),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "param"), REFUSED)
def test_a_request_that_cannot_be_answered_is_refused_in_openai_s_form(
    client: TestClient, path: str, body: Any, status: int, param: str | None
) -> None:
    headers = {"Content-Type": "application/json"}
    given = {"content": body, "headers": headers} if isinstance(body, bytes) else {"json": body}
    response = client.post(path, **given)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (COMPLETIONS, {}, "prompt: must be given"),
        (COMPLETIONS, {"prompt": "a", "temperature": -1}, "temperature: must be at least 0"),
        (COMPLETIONS, {"prompt": "a", "temperature": "hot"}, "temperature: must be a number"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 1.5}, "max_tokens: must be a whole number"),
        (COMPLETIONS, {"prompt": "a", "seed": 1 << 64}, f"seed: must be less than {1 << 64}"),
        (COMPLETIONS, {"prompt": "a", "stop": ["a"] * 17}, "stop: must have 16 or fewer"),
        (CHAT, {"messages": [3]}, "messages.0: must be an object"),
        (
            "/v1/completion",
            {},
            "there is no /v1/completion; the endpoints are /, /health, /v1/models, /v1/completions, "
            "/v1/chat/completions",
        ),
    ],
)
def test_a_refusal_says_what_is_wanted(client: TestClient, path: str, body: Any, message: str) -> None:
    assert client.post(path, json=body).json()["error"]["message"] == message


def test_a_body_in_chunks_is_bounded_too(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * (1 << 16)

    response = client.post(COMPLETIONS, content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413


def test_a_page_of_another_site_can_ask_for_nothing(client: TestClient, models: list[ServedModel]) -> None:
    plain = client.post(COMPLETIONS, content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"})
    assert plain.status_code == 415
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options(COMPLETIONS, headers=asked).headers
    local = TestClient(make_app(models, Worker(1), hosts=["127.0.0.1"]), base_url="http://evil.example")
    assert local.get("/v1/models").status_code == 400
    assert local.get("/v1/models", headers={"Host": "127.0.0.1:8000"}).status_code == 200


def test_with_a_key_only_those_who_have_it_are_answered(models: list[ServedModel]) -> None:
    client = TestClient(make_app(models, Worker(1), api_key="sesame"))
    for headers in (
        {},
        {"Authorization": "Bearer other"},
        {"Authorization": "sesame"},
        {"Authorization": "Basic sesame"},
        {"Authorization": "Bearer é"},
    ):
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        for response in (client.get("/v1/models", headers=raw), client.post(CHAT, json={}, headers=raw)):
            assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    for scheme in ("Bearer", "bearer"):
        assert client.get("/v1/models", headers={"Authorization": f"{scheme} sesame"}).status_code == 200
    assert client.get("/health").status_code == client.get("/").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_ends_as_if_it_were_long_enough(
    models: list[ServedModel], stream: bool
) -> None:
    worker = Worker(1)
    worker.start()
    client = TestClient(make_app(models, worker, seconds=0.3))
    answer = complete(client, **LONG, stream=stream)
    (choice,) = answer[-1]["choices"] if stream else answer["choices"]
    assert choice["finish_reason"] == "length"
    assert stream or 0 < answer["usage"]["completion_tokens"] < 16384
    worker.close()


class Slow(Generator):
    """A model that needs a second for a token, and fails at a prompt of four tokens."""

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[Token]:
        if len(prompt) == 4:
            raise RuntimeError("secret")
        time.sleep(1)
        yield from super().stream(prompt, sampling)


def test_a_request_that_has_not_begun_in_time_is_told_to_try_again(models: list[ServedModel]) -> None:
    worker = Worker(1)
    worker.start()
    slow = ServedModel("slow", Slow(models[0].generator.model, models[0].generator.tokenizer), True, {})
    client = TestClient(make_app([slow], worker, seconds=0.2))
    response = client.post(COMPLETIONS, json={"prompt": "a"})
    assert response.status_code == 503 and response.json()["error"]["code"] == "timeout"
    assert int(response.headers["retry-after"]) > 0
    worker.close()


def test_a_fault_is_logged_and_the_client_learns_nothing_of_it(
    models: list[ServedModel], caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(1)
    worker.start()
    faulty = Slow(models[0].generator.model, models[0].generator.tokenizer)
    app = make_app([ServedModel("faulty", faulty, True, {"odd": {1}})], worker)
    client = TestClient(app, raise_server_exceptions=False)
    for response in (client.post(COMPLETIONS, json={"prompt": "\x01\x02\x03"}), client.get("/v1/models")):
        assert response.status_code == 500 and "secret" not in response.text
        assert response.json()["error"]["type"] == "server_error"
    assert "RuntimeError: secret" in caplog.text and "TypeError: " in caplog.text
    assert complete(client)["usage"]["completion_tokens"] == 6
    worker.close()
