"""Text of others cannot act on the terminal that shows it."""

from niels_gpt.printable import escape_text


def test_text_keeps_its_lines_and_spaces_and_nothing_that_moves_the_cursor() -> None:
    assert escape_text("a\n\tb \u00a0\u3000é") == "a\n\tb \u00a0\u3000é"
    assert escape_text("model: yes\rno\x85\x0b\x1b[2J") == "model: yes\\rno\\x85\\x0b\\x1b[2J"
    controls = [*map(chr, range(32)), *map(chr, range(127, 160))]
    assert {c for c in controls if escape_text(c) == c} == {"\n", "\t"}
