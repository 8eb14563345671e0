"""The benchmark of the copy audit plays audits through: what copies fails, what does not passes."""

import pytest


@pytest.fixture
def audit(benchmark_named):
    return benchmark_named("audit")


def test_copies_fail_and_what_copies_nothing_passes(audit, monkeypatch):
    for name, values in (("PATIENTS", (30,)), ("ALIKE", (0.3,)), ("SINGLE", (100,))):
        monkeypatch.setattr(audit, name, values)
    lines = [line.strip("| ").split(" | ") for line in audit.measure(20, 200, 10, 0.05)]
    assert lines[0][-3:] == ["copies 0", "copies 0.1", "copies 0.25"]
    for none, _, many in (line[3:] for line in lines[2:]):
        assert [float(rate) <= 0.1 for rate in none.split(" / ")] == [True, True]
        assert many.split(" / ")[1] == "1.000"
    assert [line[:3] for line in lines[2:]] == [["30", "10", "0.3"], ["100", "1", "0"]]
