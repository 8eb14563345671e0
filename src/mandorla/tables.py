"""Tables: on standard output, and in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Literal


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], justify: Literal["left", "right"] = "right"):
    """Print rows of cells under the names of their columns; all but the first are justified as said.

    A terminal folds what is too long for it; a file or a pipe has no width, and gets each row on a line of its own.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify=justify if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        endless = console.options.update(width=10_000)
        console.width = max(console.width, console.measure(table, options=endless).maximum)
    console.print(table)


def markdown_head(columns: Sequence[str]) -> list[str]:
    """Return the first two lines of a table in Markdown."""
    return [markdown_row(columns), f"|{'---|' * len(columns)}"]


def markdown_row(cells: Iterable[object]) -> str:
    """Return a line of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"
