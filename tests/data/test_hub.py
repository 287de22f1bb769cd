"""Data sets of the Hugging Face hub: presets, and a hub that may be out of reach."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from support.fake_hub import COMMIT, FakeHub

from niels_gpt.config import SourceCfg
from niels_gpt.data.readers.local_files import find_files, read_dialogues
from niels_gpt.errors import DataError
from train.config.load import compose_plan

TEXTS = [f"Story {n}. The end." for n in range(300)]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


PRESETS = ["tinystories", "wikitext103", "fineweb_edu", "dolly", "dolly15k", "oasst1", "smoltalk"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_their_data_set_licence_and_size(name: str) -> None:
    (cfg, *_) = compose_plan([f"data={name}", "phase=sft", "init_from=x"])
    (found,) = cfg.data.mixture()
    assert found.kind == "hf" and "/" in found.repo and found.hub_dir == "cache/hub"
    comment = (ROOT / "conf" / "data" / f"{name}.yaml").read_text().partition("defaults:")[0]
    assert re.search("CDLA|CC BY|ODC|Apache", comment) and re.search(r"\d", comment)


@pytest.mark.parametrize(("first", "second"), [("fineweb_edu", "dolly"), ("hf", "oasst1")])
def test_the_data_of_the_second_phase_has_no_setting_of_the_first(first: str, second: str) -> None:
    other = ["data.repo=a/b", "data.column=text", "data.revision=v1"] if first == "hf" else []
    _, sft = compose_plan([f"data={first}", *other, f"+data@sft.data={second}"])
    (alone,) = compose_plan([f"data={second}", "phase=sft", "init_from=x"])
    assert sft.data.mixture() == alone.data.mixture()


def test_your_own_dialogues_after_a_data_set_have_neither_its_name_nor_its_column_and_budget() -> None:
    _, sft = compose_plan(["data=fineweb_edu", "+data@sft.data=jsonl", "sft.data.files=a.jsonl"])
    assert (sft.data.label, sft.data.max_tokens, sft.data.val_split) == ("jsonl", 0, "")
    Path("a.jsonl").write_text('{"prompt": "2?", "completion": "2!"}')
    assert len(list(read_dialogues(sft.data.mixture()[0]))) == 1


def test_a_hub_out_of_reach_names_the_way_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="owner/name") as caught:
        find_files(SourceCfg(kind="hf", repo="owner/name", hub_dir="hub"))
    assert "copy its files into a folder and set data.repo=FOLDER/" in caught.value.hint
    with pytest.raises(DataError, match="no such folder"):
        find_files(SourceCfg(kind="hf", repo="./owner/name"))


@pytest.fixture
def fake_hub(tmp_path: Path) -> Iterator[FakeHub]:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name in ("name/data", "plain"):
        Path("hub/owner", name).mkdir(parents=True)
    for split, texts in (("train", TEXTS), ("validation", TEXTS[:9])):
        parquet.write_table(pa.table({"text": texts}), f"hub/owner/name/data/{split}-00000-of-00001.parquet")
    Path("hub/owner/plain/train.txt").write_text("one\ntwo\n")
    with FakeHub(tmp_path / "hub") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


READ = """
import json, sys
from niels_gpt.config import DataCfg
from niels_gpt.data.sources import describe, read_records
from niels_gpt.errors import DataError
cfg = DataCfg(kind="hf", **json.loads(sys.argv[1])).mixture()[0]
try:
    texts = [record.text for record in read_records(cfg, "documents")]
    print(json.dumps([texts, describe(cfg)["revision"]]))
except DataError as error:
    print(json.dumps([str(error), error.hint]))
"""


@pytest.mark.long
def test_a_data_set_of_the_hub_is_read_whole_or_streamed_pinned_and_again_offline(fake_hub: FakeHub) -> None:
    pytest.importorskip("datasets")

    def ask(online: bool, **settings: Any) -> Any:
        env = {**os.environ, "HF_ENDPOINT": fake_hub.url, "HF_HOME": "home", "PYTHONPATH": str(ROOT)}
        env["HF_HUB_OFFLINE"] = "01"[not online]
        command = [sys.executable, "-P", "-c", READ, json.dumps({"repo": "owner/name", **settings})]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert not done.returncode, done.stderr
        return json.loads(done.stdout)

    whole = [TEXTS, COMMIT]
    assert ask(True, column="text") == whole
    asked = len(fake_hub.asked)
    assert ask(False, column="text") == ask(True, column="text") == whole
    assert len(fake_hub.asked) <= asked + 2, "what is there is not fetched again"
    assert ask(True, split="validation") == [TEXTS[:9], COMMIT]
    streamed, revision = ask(True, column="text", streaming=True, max_tokens=100, cache_dir="other")
    assert streamed == TEXTS[: len(streamed)] and 10 < len(streamed) < 100 and revision == COMMIT
    assert ask(False, column="text", streaming=True, max_tokens=100, cache_dir="other")[0] == streamed
    assert ask(False, column="text", revision=COMMIT, cache_dir="third")[1].startswith("without a network")
    assert "no split 'nope', only train, validation" in ask(True, split="nope")[0]
    assert "Available" in ask(True, subset="nope")[0]
    assert ask(True, repo="owner/plain")[1] == "set data.streaming=true"
    assert ask(True, repo="owner/plain", streaming=True)[0] == ["one", "two"]
