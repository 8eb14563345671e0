"""The benchmark of samplers measures each of them, and counts evaluations rather than steps."""

import pytest

import mandorla
from mandorla.diffusion.samplers import SamplingConfig, evaluations


@pytest.fixture
def nfe(benchmark_named):
    return benchmark_named("nfe")


def test_every_row_is_measured(nfe, polydigits_run, copy_of):
    model = mandorla.load(copy_of(polydigits_run))
    network, calls = model.diffusion.network, []
    network.register_forward_hook(lambda *_: calls.append(1))
    rows, counts = [], []
    for line in nfe.measure(model, 20, [1, 2, 4], ["heun", "euler"]):
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
        counts.append(len(calls))
    assert rows[0] == ["sampler", "evaluations", "Fréchet, judge", "Fréchet, random", "one class in all"]
    expected = [["heun", "2"], ["heun", "4"], ["euler", "1"], ["euler", "2"], ["euler", "4"]]
    assert [row[:2] for row in rows[2:7]] == expected, "what one evaluation cannot do is measured once, by two"
    assert [after - before for before, after in zip(counts[1:6], counts[2:7], strict=True)] == [2, 4, 1, 2, 4]
    real, decoded, drawn = (float(rows[place][2]) for place in (-1, -2, -3))
    assert real < decoded and real < drawn, "real training samples are nearer to real test samples than what is made"


def test_a_weaker_network_counts_too(nfe, polydigits_run, copy_of):
    model = mandorla.load(copy_of(polydigits_run))
    model.diffusion.weak = network = model.diffusion.network
    model.sampling = model.sampling.model_copy(update={"autoguidance": 2.0})
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    lines = nfe.measure(model, 20, [8, 16], ["multistep", "sde"])
    counts = [len(calls) for line in lines]
    assert [after - before for before, after in zip(counts[1:5], counts[2:6], strict=True)] == [8, 16, 8, 16]


def test_where_guidance_begins_late_more_steps_are_taken(nfe):
    whole = SamplingConfig(autoguidance=2.0)
    late = whole.model_copy(update={"guided_from": 0.6})
    assert [nfe.within(16, sampling).steps for sampling in (whole, late)] == [7, 11]
    assert evaluations(nfe.within(16, late)) == 16
    assert nfe.within(1, whole).steps == 1, "the least there is"
