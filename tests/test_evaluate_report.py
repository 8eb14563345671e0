"""The page is whole and needs nothing but itself; the headline figures are the ones that matter."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mandorla.evaluate import fidelity
from mandorla.evaluate.pictures import Picture, curves, read_log
from mandorla.evaluate.probes import auc
from mandorla.evaluate.record import Record, bootstrap_error, jackknife_error, standard_error
from mandorla.evaluate.report import position, print_summary, render, summary
from mandorla.pictures import grid, tile


def record(name: str, value: float = 0.5, **more) -> Record:
    return Record(name, value, 0.01, 100, "A share.", **more)


def open_png(png: bytes, tmp_path) -> Image.Image:
    (tmp_path / "picture.png").write_bytes(png)
    return Image.open(tmp_path / "picture.png")


def test_the_page_escapes_what_it_shows_and_asks_for_nothing_outside():
    picture = Picture("a", "Samples", "<b>", "caption & more", 'alt "quoted"', grid([[torch.zeros(1, 4, 4)]]))
    page = render("<run>", [record("shared/class", chance=0.1)], [picture], ["note"], {"seed": 0}, "a: <1>")
    assert "&lt;run&gt;" in page and "&lt;b&gt;" in page and "a: &lt;1&gt;" in page and "caption &amp; more" in page
    assert not re.findall(r"<(?:script|link|iframe)|https?://|url\(|@import", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', page))
    assert "prefers-color-scheme: dark" in page and "@media print" in page and 'name="viewport"' in page


def test_a_section_shows_sums_first_and_single_views_folded():
    page = render("run", [record("shared/class"), record("shared/class/view0")], [], [], {}, "")
    assert page.index("shared/class</th>") < page.index("1 more, one by one") < page.index("shared/class/view0</th>")


def test_the_headlines_are_few_and_in_order(capsys):
    chosen = ["shared/class", "private/class linear", "private/class mlp", "coherence/cross", "joint/agreement"]
    chosen += ["swap/class", "swap/agreement"]
    records = [record(name, chance=0.1, control=0.2, ceiling=0.9) for name in ["copies/ratio", *chosen[::-1]]]
    assert [r.name for r in summary(records)] == chosen
    print_summary(records)
    printed = capsys.readouterr().out
    assert (
        all(name in printed for name in chosen)
        and "copies" not in printed
        and "0.900" in printed
        and "0.200" in printed
    )


def test_without_a_class_the_anatomy_leads():
    names = [
        "translation/psnr mean",
        "translation/t1 to t2/anatomy psnr",
        "lesion/known from t1",
        "copies/ratio in pixels",
    ]
    expected = [names[1], names[2], names[0], names[3]]
    assert [r.name for r in summary([record(name) for name in names])] == expected


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.12345, "", "0.123"),
        (1.23e-4, "", "1.2e-04"),
        (0.0, "", "0.000"),
        (21.26, "dB", "21.3 dB"),
        (0.5, "nats", "0.500 nats"),
        (3.7e-17, "", "0.000"),
    ],
)
def test_numbers_for_people(value, unit, text):
    assert record("a/b", value, unit=unit).text("value") == text
    assert record("a/b").text("control") == ""
    told = record("a/b", value, unit=unit, p=0.5, ceiling=value)
    assert told.text("p") == "0.500" and told.text("ceiling") == text
    assert told.text("error").replace(".", "").isdecimal(), "its unit is that of the value beside it"


def test_bars_span_chance_and_ceiling():
    assert position(record("a/b", 0.25, chance=0.1, ceiling=0.5)) == {"value": 25, "chance": 10, "ceiling": 50}
    assert position(record("a/b", 20.0, chance=10.0, unit="dB")) == {"value": 100, "chance": 50}
    assert position(record("a/b", -0.5, chance=0.0))["value"] == 0


def test_errors_of_patients_with_several_samples():
    """Ten copies of each sample tell no more than one; the error of unequal groups is that of the bootstrap."""
    rng = np.random.default_rng(0)
    scores = rng.random(40)
    groups = np.repeat(np.arange(40), 10).astype(str)
    for error in (lambda z, g=None: standard_error(z, g), lambda z, g=None: bootstrap_error(np.mean, (z,), groups=g)):
        assert error(np.repeat(scores, 10), groups) == pytest.approx(error(scores), rel=0.2)
        assert error(np.repeat(scores, 10)) < 0.4 * error(scores)
    record = Record.of("a", np.repeat(scores, 10), "b.", groups=groups)
    assert record.value == pytest.approx(scores.mean()) and record.n == 40
    assert record.error == pytest.approx(scores.std(ddof=1) / np.sqrt(40))
    patient = rng.integers(60, size=600)
    values = rng.normal(size=60)[patient] + rng.normal(size=600)
    drawn = bootstrap_error(np.mean, (values,), draws=2000, groups=patient)
    assert standard_error(values, patient) == pytest.approx(drawn, rel=0.1)
    one = np.zeros(600)
    assert standard_error(values, one) is None and bootstrap_error(np.mean, (values,), groups=one) is None


def test_standard_errors_are_binomial_and_bootstrapped():
    scores = np.repeat([0.0, 1.0], [300, 700])
    assert standard_error(scores) == pytest.approx(np.sqrt(0.3 * 0.7 / 999))
    assert standard_error(scores[:1]) is None
    assert bootstrap_error(lambda a: a.mean(), (scores,)) == pytest.approx(np.sqrt(0.3 * 0.7 / 1000), rel=0.2)
    only_one = np.arange(3) == 1
    assert 0 < bootstrap_error(auc, (np.arange(3.0), only_one)) < 1, "resamples of one class have no AUC"


def test_small_images_are_enlarged_pixel_by_pixel():
    x = torch.rand(3, 12, 12)
    picture = np.asarray(tile(x))
    assert picture.shape == (72, 72, 3)
    np.testing.assert_array_equal(picture[::6, ::6], (255 * x).round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("shape", "size"), [((1, 5, 80, 60), (60, 80)), ((2, 400, 200), (80, 160))])
def test_volumes_show_a_slice_and_large_images_shrink(shape, size):
    assert tile(torch.rand(*shape)).size == size


def test_a_grid_has_a_place_for_every_image_and_leaves_gaps_transparent(tmp_path):
    picture = open_png(
        grid([[None, torch.ones(1, 72, 72)], [torch.zeros(1, 72, 72)] * 2], ["a", "b"], ["c", "d"]), tmp_path
    )
    pixels = np.asarray(picture)
    assert picture.mode == "RGBA"
    assert (pixels[22 + 36, -36] == 255).all() and (pixels[-36, -36] == [0, 0, 0, 255]).all()
    assert pixels[22 + 36, -72 - 4 - 36, 3] == 0


def test_curves_draw_any_log(tmp_path):
    lines = [{"step": k, "part": "train", "loss": 1 / (k + 1), "kl": 0.1} for k in range(5)]
    lines.append({"step": 4, "part": "val", "loss": 0.3})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    picture = curves("vae", read_log(tmp_path))
    assert picture.title == "Stage 1" and picture.name == "training_vae"
    assert "loss, kl" in picture.alt and open_png(picture.png, tmp_path).size[0] > 300


def test_damaged_lines_of_a_log_are_passed_over(tmp_path):
    """A training that is killed leaves half a line, a run folder of somebody else anything."""
    assert read_log(tmp_path) == []
    lines = ['{"step": 1, "part": "val", "loss": 2}', "3", "[]", '{"step": 2, "part": "train", "loss": "x"}', "{}"]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 2, "pa']))
    assert read_log(tmp_path) == [(1, "val", {"loss": 2.0})]


def test_a_jackknife_of_the_mean_is_its_standard_error():
    z = np.random.default_rng(0).standard_normal((10, 3))
    own = np.arange(10)
    found = jackknife_error(lambda z: z.mean(0), (z,), (own,))
    np.testing.assert_allclose(found, [standard_error(column) for column in z.T])
    twice = jackknife_error(lambda z: z.mean(0), (np.concatenate([z, z]),), (np.concatenate([own, own]),))
    np.testing.assert_allclose(twice, found)
    assert jackknife_error(lambda z: z.mean(0), (z,), (np.zeros(10),)) is None
    assert jackknife_error(lambda z: z.mean(0), (z,), (np.arange(10) // 9,), least=2) is None


def test_the_error_of_fidelity_is_what_other_patients_would_change():
    """Slices of twelve patients, taken for independent, give distances to real ones far too certain."""
    rng, patients, slices = np.random.default_rng(0), np.repeat(np.arange(12), 10), np.arange(120)

    def figures(*sets) -> np.ndarray:
        return np.array(list(fidelity(*sets).values()))

    drawn, told, naive = [], [], []
    for _ in range(30):
        real = rng.standard_normal((12, 4))[patients] + 0.3 * rng.standard_normal((120, 4))
        sets = real, 1.09**0.5 * rng.standard_normal((120, 4))
        drawn.append(figures(*sets))
        told.append(jackknife_error(figures, sets, (patients, slices), 6))
        naive.append(jackknife_error(figures, sets, (slices, slices), 6))
    truth = np.std(drawn, axis=0)
    assert (abs(np.log2(np.mean(told, 0) / truth)) < 1).all()
    assert (np.mean(naive, 0)[:2] < 0.6 * truth[:2]).all(), "Fréchet and kernel distance"


def test_letters_of_other_languages_are_drawn_in_grids():
    drawn = [grid([[torch.zeros(1, 8, 8)]], [name]) for name in ("Ü", "Ж", "ł")]
    assert len(set(drawn)) == 3, "a letter that the font lacks is a box, the same for all"


def test_long_titles_of_columns_do_not_run_into_each_other():
    names = ["shared of A, private of B", "shared of B, private of A"]
    picture = Image.open(io.BytesIO(grid([[torch.zeros(1, 24, 24)] * 2], (), names)))
    lettering = np.asarray(picture)[: picture.height - 72, :, 3].any(0)
    assert not lettering[72:76].any() and lettering[:72].any() and lettering[76:].any()
