"""The figures of `make figures` are those of the files."""

import runpy

import pytest
from conftest import ROOT


def test_every_room_is_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    runpy.run_path(str(ROOT / "scripts" / "count_lines.py"))["main"]()
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    figures = {row[0]: [int(cell.replace(",", "")) for cell in row[-2:]] for row in rows}
    assert head == ["room", "lines", "files"]
    config = list((ROOT / "train" / "config").glob("*.py"))
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in config)
    assert figures["train/config"] == [lines, len(config) - 1]
    rooms = [figures[name] for name in figures if name not in ("product", "tests")]
    assert figures["product"][1:] == [sum(column) for column in list(zip(*rooms, strict=True))[1:]]
