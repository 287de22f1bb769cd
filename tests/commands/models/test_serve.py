"""niels_gpt serve: models and their names, addresses, waiting clients, and its end."""

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support import processes
from support.processes import wait_until
from support.served import Served, read_events, serving

LONG = {"prompt": "a", "max_tokens": 16384, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def served(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of two models, with room for one request that waits."""
    words = [
        str(finished_run),
        str(finished_run / "pretrain"),
        "--name",
        "mine",
        "--queue",
        "1",
        "--timeout",
        "30",
    ]
    with serving(*words, cwd=tmp_path_factory.mktemp("serve")) as served:
        yield served


def test_models_have_the_given_names_or_those_of_their_folders(served: Served) -> None:
    models = served.client.get("/v1/models").json()["data"]
    assert [(model["id"], model["chats"]) for model in models] == [("mine", True), ("run/pretrain", False)]
    assert models[0]["best_val_loss"] > 0 and models[1]["best_val_loss"] > 0
    assert models[0]["best_val_loss"] != models[1]["best_val_loss"], "each phase has its own"
    assert served.ask(model="run/pretrain").json()["model"] == "run/pretrain"
    assert served.client.get("/v1/models/run/pretrain").json() == models[1]


def test_a_local_server_answers_only_under_local_names(served: Served) -> None:
    for name, status in (("localhost", 200), ("127.0.0.1:80", 200), ("[::1]:80", 200), ("evil.example", 400)):
        assert served.client.get("/health", headers={"Host": name}).status_code == status


def test_models_stream_side_by_side_and_a_client_that_leaves_makes_room(served: Served) -> None:
    with served.client.stream("POST", "/v1/completions", json=LONG) as first:
        lines = first.iter_lines()
        assert next(lines).startswith("data: ")
        began = time.monotonic()
        assert served.ask(model="run/pretrain").status_code == 200
        assert time.monotonic() - began < 3, "the other model is not held up"
    began = time.monotonic()
    assert served.ask().status_code == 200 and time.monotonic() - began < 5, "16384 tokens take longer"


def test_a_client_that_waits_for_a_whole_answer_may_leave_too(served: Served) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        served.client.post("/v1/completions", json=LONG | {"stream": False}, timeout=0.5)
    began = time.monotonic()
    assert served.ask().status_code == 200 and time.monotonic() - began < 5


def test_one_that_leaves_the_queue_changes_nothing_for_the_others(served: Served) -> None:
    body = LONG | {"max_tokens": 1000}
    with served.client.stream("POST", "/v1/completions", json=body) as first:
        lines = first.iter_lines()
        next(lines)
        with pytest.raises(httpx2.ReadTimeout):
            served.client.post("/v1/completions", json=body, timeout=0.2)
        assert read_events(lines)[-1]["choices"][0]["finish_reason"] == "length"
    assert served.ask().status_code == 200


def test_beyond_the_queue_clients_are_told_to_try_again_later(served: Served) -> None:
    statuses: list[int] = []
    with served.client.stream("POST", "/v1/completions", json=LONG) as first:
        lines = first.iter_lines()  # dropped, it would end the stream
        next(lines)
        second = threading.Thread(target=lambda: statuses.append(served.ask().status_code))
        second.start()
        wait_until(lambda: served.client.get("/health").json()["waiting"] == 1)
        refused = served.ask()
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "queue_full"
        assert refused.json()["error"]["message"] == "1 request waits already; try again"
        assert served.client.get("/health").status_code == 200
    second.join()
    assert statuses == [200], "it had its turn"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_answers_in_progress_as_they_are(
    finished_run: Path, tmp_path: Path, signum: int, code: int
) -> None:
    with serving(str(finished_run), cwd=tmp_path) as served:
        statuses: list[int] = []
        waiting = threading.Thread(target=lambda: statuses.append(served.ask().status_code))
        with served.client.stream("POST", "/v1/completions", json=LONG) as answer:
            lines = answer.iter_lines()
            next(lines)
            waiting.start()
            wait_until(lambda: served.client.get("/health").json()["waiting"] == 1)
            served.child.send(signum)
            events = read_events(lines)
            assert events[-1]["choices"][0]["finish_reason"] == "length" and len(events) < 8000
        waiting.join()
        assert statuses == [503]
        done = served.child.end()
    assert done.returncode == code and list(tmp_path.iterdir()) == []
    assert done.stdout.startswith("serving run at http://127.0.0.1:")
    assert done.stderr == "the server stopped; answers in progress were ended\n"


def test_a_loss_is_that_of_the_weights_or_not_told(finished_run: Path, tmp_path: Path) -> None:
    with serving(str(finished_run), "--average", "1", cwd=tmp_path) as served:
        assert served.client.get("/v1/models").json()["data"][0]["best_val_loss"] is None


def test_beyond_this_machine_it_warns_and_wants_a_key(finished_run: Path, tmp_path: Path) -> None:
    with serving(str(finished_run), "--host", "0.0.0.0", cwd=tmp_path) as served:
        assert served.client.get("/v1/models", headers={"Host": "my.machine"}).status_code == 200
        served.child.send(signal.SIGTERM)
        assert served.child.end().stderr.count("warning: ") == 2


def test_another_address_of_this_machine_answers(finished_run: Path, tmp_path: Path) -> None:
    with serving(str(finished_run), "--host", "127.0.0.2", cwd=tmp_path, host="127.0.0.2") as served:
        assert served.ask().status_code == 200
        assert served.client.get("/", headers={"Host": "evil.example"}).status_code == 400


def test_a_port_in_use_is_named(tmp_path: Path, finished_run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = processes.cli(str(finished_run), "--port", str(port), cwd=tmp_path, script="serve")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1 port {port}: Address already in use\nhint: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a/run", "b/run"], "two models have the name run"),
        (["a", "--name", "b", "--name", "c"], "2 names for 1 models"),
        (["a", "--name", ""], "--name is empty"),
        (["a", "--port", "70000"], "--port must be 0 to 65535"),
        (["a", "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid port 8000"),
        (["a", "--api-key", ""], "the API key must be printable ASCII"),
        (["a", "--queue", "0"], "must be at least 1"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(tmp_path: Path, words: list[str], said: str) -> None:
    done = processes.cli(*words, cwd=tmp_path, script="serve")
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr
    assert "hint: " in done.stderr and "Traceback" not in done.stderr


def hide_starlette() -> None:
    vars(sys)["modules"]["starlette"] = None
    vars(sys)["modules"]["starlette.applications"] = None


def test_without_its_packages_it_names_the_extra(tmp_path: Path) -> None:
    done = processes.cli("run", cwd=tmp_path, script="serve", before=hide_starlette)
    assert (done.returncode, done.stdout, os.listdir(tmp_path)) == (2, "", [])
    assert done.stderr == "error: starlette is not installed\nhint: pip install 'niels_gpt[serve]'\n"
