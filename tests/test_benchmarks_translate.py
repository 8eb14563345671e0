"""The benchmark of translate runs, and prints seconds and memory for each number of files."""

import re

import pytest


@pytest.mark.slow
def test_it_runs(capsys, benchmark_named):
    benchmark_named("translate").main(["--files", "1,2", "--shape", "80,96,12", "--steps", "1"])
    said = capsys.readouterr().out
    found = re.findall(
        r"(\d) pair.s.: +[\d.]+ s by the clock .*, +([\d.]+) s of processor, .* at most +(\d+) MiB", said
    )
    assert [number for number, *_ in found] == ["1", "2"]
    assert all(float(seconds) > 0 and int(memory) > 50 for _, seconds, memory in found)
