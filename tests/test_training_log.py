"""What a training says while it runs."""

import pytest
from rich.console import Console

from mandorla import training_log


@pytest.mark.parametrize("width", [40, 56, 76, 100])
def test_a_narrow_terminal_shows_how_far_a_training_is(width, capsys, monkeypatch):
    console = Console(width=width)
    monkeypatch.setattr(training_log, "get_console", lambda: console)
    progress = training_log.progress_line()
    task = progress.add_task("stage 2 (diffusion)", total=1500, completed=0, figures="")
    progress.update(task, completed=700, figures="loss 11.5")
    console.print(progress.get_renderable())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and " 700/1500" in lines[0] and lines[0].rstrip().endswith("loss 11.5")
    assert ("0.0/s -:--:--" in lines[0]) == (width > 40) and ("━" in lines[0]) == (width > 56)
