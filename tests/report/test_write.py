"""What a sweep leaves behind: one page and its three companions, whole, harmless and right in every state."""

import csv
import html
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from rich.console import Console
from support.made_runs import made_job, made_run

from train.report.tables import COLUMNS, PEAK_NOTE, describe_row, draw_console_table
from train.report.write import rewrite_report

HOSTILE = "<script>alert(1)</script>&\"'=`|*_$x$,a=\x1b[31m"


class Page(HTMLParser):
    """The tags of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep in which jobs stand in every way."""
    folder = tmp_path / "sweep"
    made_run(folder / "01-B2", (4.0, 3.0), speed=900.0, base_lr=0.0012345678, job={"number": 1})
    made_run(folder / "02-B4", (4.0, 3.001), speed=1200.0, memory=2**31, job={"number": 2})
    made_job(folder / "03-B8", "killed", number=3, exit_code=-9, reason="out of memory")
    made_job(folder / "04-B16", "waiting", number=4, seconds=0.0)
    (made_run(folder / "damaged") / "job.json").write_text("{")
    return folder


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_json(folder: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads((folder / "sweep.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_each_state_is_a_row_of_the_promised_columns_in_each_file(sweep: Path) -> None:
    rows = rewrite_report(sweep, None).rows
    assert [r.name for r in rows] == ["01-B2", "02-B4", "03-B8", "04-B16", "damaged"]
    told = [r["status"] for r in read_csv(sweep)]
    assert told == ["finished", "finished", "killed", "waiting", "unreadable"]
    assert [r["status"] for r in read_json(sweep)["rows"]] == told
    page = Page(text := (sweep / "sweep.html").read_text(encoding="utf-8"))
    assert page.count("tr") == 1 + 5 + 1 + 2, "the runs, and the settings of those that have any"
    assert page.count("img") == 3 and ">0.00123<" in text, "a setting with three digits"
    note = (sweep / "sweep.md").read_text(encoding="utf-8")
    assert PEAK_NOTE in note and PEAK_NOTE in text
    cells = [[cell.strip() for cell in line.split("|")] for line in note.splitlines()]
    assert ["", "3", "03-B8", "killed", "", "", "", "", "", "1.5", "-9", "out of memory"] in [
        c[:12] for c in cells
    ]
    files = {path.name for path in sweep.iterdir() if path.is_file()}
    assert files == {".sweep.lock", "sweep.csv", "sweep.html", "sweep.json", "sweep.md"}
    first, _, killed, *_ = read_csv(sweep)
    assert killed["exit_code"] == "-9", "a number, though no text may begin like this"
    assert set(first) == {column.key for column in COLUMNS} == {
        "job", "overrides", "status", "val_loss", "bits_per_byte", "by_source", "tokens", "tokens_per_second",
        "peak_memory_gib", "minutes", "exit_code", "reason",
    }  # fmt: skip
    numbers = [float(first[key]) for key in ("val_loss", "bits_per_byte", "tokens_per_second", "peak_memory_gib")]
    assert numbers == [3.0, 1.5, 900.0, 1.0]


def test_the_page_fetches_nothing(sweep: Path) -> None:
    rewrite_report(sweep, 1.0)
    text = (sweep / "sweep.html").read_text(encoding="utf-8")
    outside = re.sub(r'"data:image/svg\+xml;base64,[^"]*"', '"data:"', text)  # an image fetches nothing itself
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", outside)
    for tag, attributes in Page(outside).tags:
        assert tag not in {"link", "iframe", "object", "base"}
        assert attributes.get("src") in (None, "data:") and (attributes.get("href") or "#").startswith("#")
    assert "default-src 'none'" in text


def test_what_comes_from_the_disk_is_harmless_everywhere(tmp_path: Path) -> None:
    folder = tmp_path / "<b>sweep"
    command = shlex.join(["niels_gpt", "train", HOSTILE])
    job = {"overrides": (HOSTILE, "=1+1"), "command": command, "reason": HOSTILE}
    name = HOSTILE.replace("/", "")
    made_run(folder / name, job=job)
    made_run(folder / "_$x^$", B=2, accum_steps=4)
    made_job(folder / "@SUM(1)", "failed", **job | {"reason": "=cmd|' /C calc'!A0"})
    rewrite_report(folder, None)
    page = Page(text := (folder / "sweep.html").read_text(encoding="utf-8"))
    assert page.count("script") == 1 and page.count("b") == 1, "the page's own"
    note = (folder / "sweep.md").read_text(encoding="utf-8")
    pasted = command.replace("\x1b", r"\x1b")
    assert note.count(f"\n\n    {pasted}\n") == 2 and "\x1b" not in note
    assert "<script>" not in note.replace(pasted, "")
    assert html.unescape(text).count(f"<code>{pasted}</code>") == 2
    rows = read_csv(folder)
    assert {r["job"] for r in rows} == {name.replace("\x1b", r"\x1b"), "_$x^$", "'@SUM(1)"}
    assert {r["reason"] for r in rows} == {HOSTILE.replace("\x1b", r"\x1b"), "", "'=cmd|' /C calc'!A0"}
    assert not any(cell.startswith(("=", "+", "-", "@")) for r in rows for cell in r.values())


def test_a_loss_that_is_not_finite_is_never_the_best_nor_breaks_a_file(tmp_path: Path) -> None:
    made_run(tmp_path / "bad", (4.0, float("nan")))
    made_run(tmp_path / "good", (4.0, 3.5))
    rewrite_report(tmp_path, None)
    report = read_json(tmp_path)
    assert report["best"][0]["job"] == "good"
    assert [row["val_loss"] for row in report["rows"]] == [3.5, None]
    assert [row["val_loss"] for row in read_csv(tmp_path)] == ["3.5", ""]


def test_an_empty_sweep_is_a_report_too(tmp_path: Path) -> None:
    assert rewrite_report(tmp_path, 1.0).rows == []
    page = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert "no finished run has a validation loss" in page and "no finished run fits" in page
    assert read_csv(tmp_path) == read_json(tmp_path)["rows"] == []


def test_many_long_runs_make_no_large_page(tmp_path: Path) -> None:
    for n in range(64):
        made_run(tmp_path / f"train.seed={n}", [9 / step for step in range(1, 400)], seed=n)
    rewrite_report(tmp_path, None)
    assert (tmp_path / "sweep.html").stat().st_size < 2**20
    page = Page((tmp_path / "sweep.html").read_text(encoding="utf-8"))
    told = [attributes for tag, attributes in page.tags if "swatch" in (attributes.get("class") or "")]
    assert len(told) == 3 + 1, "the best three, and the others"


REWRITE = """
import pathlib, sys
from train.report.write import rewrite_report
for _ in range(3):
    rewrite_report(pathlib.Path(sys.argv[1]), None)
"""


@pytest.mark.slow
def test_several_may_rewrite_at_once_and_a_reader_always_sees_a_whole_page(sweep: Path) -> None:
    rewrite_report(sweep, None)
    writers = [subprocess.Popen([sys.executable, "-c", REWRITE, sweep], cwd=ROOT) for _ in range(2)]
    looks = 0
    while any(writer.poll() is None for writer in writers):
        assert (sweep / "sweep.html").read_text(encoding="utf-8").endswith("</html>")
        assert len(read_json(sweep)["rows"]) == len(read_csv(sweep)) == 5
        looks += 1
    assert looks > 5 and [writer.returncode for writer in writers] == [0, 0]


def test_a_job_is_told_in_a_line(sweep: Path) -> None:
    assert [describe_row(row) for row in rewrite_report(sweep, None).rows][1:4] == [
        "02-B4: finished, val loss 3.0010, 1.500 bits per byte, 4,000 tokens, 1,200 tokens/s, 2.00 GiB, "
        "1.5 minutes",
        "03-B8: killed, 1.5 minutes, out of memory",
        "04-B16: waiting",
    ]


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (80, ["1 01-B2 finished 3.0000 1.500 900 1.00 1.5", "3 03-B8-accum_steps2 killed 1.5"]),
        (30, ["1 01-B2", "3 03-B8-accum_steps2"]),
    ],
)
def test_the_table_of_the_console_keeps_what_the_width_allows(sweep: Path, width: int, lines: list[str]) -> None:
    (sweep / "03-B8").rename(sweep / "03-B8-accum_steps2")
    with (sweep / "out.txt").open("w") as file:
        Console(width=width, file=file).print(draw_console_table(rewrite_report(sweep, None), width))
    drawn = (sweep / "out.txt").read_text().splitlines()
    assert max(map(len, drawn)) <= width and {" ".join(line.split()) for line in drawn} >= set(lines)
