"""Many clients at once: each gets every answer that it asks for, and its own."""

import os
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest
from support.served import read_events, serving

pytestmark = pytest.mark.slow
CLIENTS = 50
SECONDS = float(os.environ.get("NIELS_LOAD_SECONDS", 8))
TOKENS = 8


def test_50_clients_lose_no_answer(finished_run: Path, tmp_path: Path) -> None:
    counts, waits = Counter[str](), list[float]()
    with serving(str(finished_run), cwd=tmp_path) as served:
        texts = [served.ask(seed=seed, max_tokens=TOKENS).json()["choices"][0]["text"] for seed in range(10)]
        end = time.monotonic() + SECONDS

        def ask(number: int) -> None:
            body = {"prompt": "a", "seed": number % 10, "max_tokens": TOKENS, "stream": number % 2 == 0}
            with httpx2.Client(base_url=f"http://127.0.0.1:{served.port}", timeout=60) as client:
                while time.monotonic() < end:
                    began = time.monotonic()
                    while (response := client.post("/v1/completions", json=body)).status_code == 429:
                        counts["told to wait"] += 1
                        time.sleep(float(response.headers["retry-after"]))
                    counts[f"status {response.status_code}"] += 1
                    events = read_events(response.iter_lines()) if body["stream"] else [response.json()]
                    counts["right"] += texts[number % 10] == "".join(e["choices"][0]["text"] for e in events)
                    waits.append(time.monotonic() - began)

        clients = [threading.Thread(target=ask, args=[number]) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    waits.sort()
    print(f"{dict(counts)}, median {waits[len(waits) // 2]:.2f} s, longest {waits[-1]:.2f} s")
    assert counts["right"] == counts["status 200"] == len(waits) > CLIENTS
    assert counts.keys() <= {"status 200", "right", "told to wait"}
