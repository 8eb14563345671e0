"""Tables fit a terminal and are whole in a file."""

import re

import pytest
from rich.console import Console

from mandorla.tables import markdown_head, markdown_row, print_table

NAMES = [f"translation/a modality of a long name to another/figure {k}" for k in range(3)]


def test_a_file_gets_each_row_on_a_line_of_its_own(capsys):
    print_table(["figure", *NAMES], [[name, "0.123 ± 0.456", "", "higher"] for name in NAMES])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(name in line for name, line in zip(NAMES, lines[1:], strict=True))
    assert all(name in lines[0] for name in NAMES)


def test_what_is_long_is_folded_in_a_terminal_and_nothing_is_lost(capsys, monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "60")
    print_table(["figure", "value"], [[NAMES[0], "[bold]:car:[/]"]], justify="left")
    lines = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 60 and len(lines) > 2
    assert "[bold]:car:[/]" in "".join(lines), "names and values are no markup"


@pytest.mark.parametrize("width", ["40", "200"])
def test_a_narrow_file_is_as_wide_as_it_must_be(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    print_table(["figure", "value"], [[NAMES[0], "1"]])
    assert NAMES[0] in capsys.readouterr().out


def test_a_table_in_markdown():
    assert markdown_head(["figure", "value"]) == ["| figure | value |", "|---|---|"]
    assert markdown_row(["steps", 3]) == "| steps | 3 |"
