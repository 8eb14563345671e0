"""Tables of figures: means, deviations, the best in bold, empty cells."""

from mandorla.evaluate.record import Record
from mandorla.evaluate.table import figures_table


def record(name, value, **more):
    return Record(name, value, 0.0, 10, "A figure.", **more)


def test_means_of_runs_and_references():
    runs = [[record("a/b", 0.1, chance=0.1), record("a/once", 1.0)], [record("a/b", 0.3, chance=0.2)]]
    assert figures_table({"mean ± sd of 2": runs}) == (
        "| figure | mean ± sd of 2 | chance | better |\n|---|---|---|---|\n| a/b | 0.200 ± 0.141 | 0.150 | higher |\n"
    )


def test_small_figures_have_more_digits():
    runs = [[record("kid", 0.0004, better="lower", ceiling=0.0001)], [record("kid", 0.0006, better="lower")]]
    assert figures_table({"x": runs}).splitlines()[2] == "| kid | 0.00050 ± 0.00014 | 0.00010 | lower |"


def test_the_best_of_several_models_is_bold_as_far_as_digits_tell():
    columns = {
        "ours": [[record("leak", 0.1001, better="lower"), record("psnr", 20.0, unit="dB"), record("same", 1.0)]],
        "theirs": [[record("leak", 0.1, better="lower"), record("psnr", 21.0, unit="dB"), record("same", 1.0)]],
        "third": [[record("leak", 0.2, better="lower")]],
    }
    assert figures_table(columns).splitlines()[2:] == [
        "| leak | **0.100** | **0.100** | 0.200 | lower |",
        "| psnr | 20.0 dB | **21.0 dB** |  | higher |",
        "| same | 1.000 | 1.000 |  | higher |",
    ]


def test_the_best_is_the_nearest_to_its_ceiling_where_there_is_too_much_of_it():
    def run(value):
        ratio = record("ratio", value, better="nearer ceiling", ceiling=1.0)
        return [[ratio, record("of the data", value, better="neither", ceiling=1.0)]]

    def runs(*pairs):
        return [[record("ratio", value, better="nearer ceiling", ceiling=ceiling)] for value, ceiling in pairs]

    exact = {"ours": runs((0.5, 0.5), (0.9, 0.9)), "theirs": runs((0.3, 0.5), (0.7, 0.9))}
    assert figures_table(exact).splitlines()[2].startswith("| ratio | **0.700")
    columns = {"ours": run(1.3), "theirs": run(0.8), "third": run(3.0)}
    assert figures_table(columns).splitlines()[2:] == [
        "| ratio | 1.300 | **0.800** | 3.000 | 1.000 | nearer ceiling |",
        "| of the data | 1.300 | 0.800 | 3.000 | 1.000 | neither |",
    ]
