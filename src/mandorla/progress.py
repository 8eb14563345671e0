"""How far a long work is: one bar for all of them, but for trainings, which have a line of their own."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mandorla.parallel import is_first


def progress_bar() -> Progress:
    """Return a bar on standard error that goes when its work ends; it is seen by who looks on a terminal alone.

    Of processes that work together the first shows it.
    """
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, disable=not (console.is_terminal and is_first()))
