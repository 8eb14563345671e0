"""Two runs side by side: what differs, who is better, and a picture of both."""

import io
import json
import warnings
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from PIL import Image

import mandorla
from mandorla.checkpoint import load_tensors, save_tensors
from mandorla.compare import compare, compare_records, draw_curves, read_curves
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.evaluate.pictures import curves
from mandorla.evaluate.record import Record
from mandorla.recipe import read_run


def record(name: str, value: float, error: float | None = 0.01, better: str = "higher") -> Record:
    return Record(name, value, error, 100, "a figure", better)


def records(*given: Record) -> dict[str, Record]:
    return {one.name: one for one in given}


def test_who_is_better():
    a = records(
        record("shared/class", 0.9), record("leak/x", 0.3, better="lower"), record("joint/y", 0.5), record("a/b", 1)
    )
    b = records(record("shared/class", 0.95), record("leak/x", 0.2, better="lower"), record("joint/y", 0.51))
    verdicts = {name: cells[-1] for name, cells in compare_records(a, b).items()}
    assert verdicts == {"shared/class": "second", "leak/x": "second", "joint/y": "as likely chance"}
    assert {cells[-1] for name, cells in compare_records(b, a).items() if name != "joint/y"} == {"first"}
    assert compare_records(a, b)["shared/class"][:3] == ["0.900 ± 0.010", "0.950 ± 0.010", "+0.05"]
    assert {cells[-1] for cells in compare_records(a, a).values()} == {"equal"}
    fewer = {"shared/class": replace(b["shared/class"], definition="of fewer draws")}
    assert compare_records(a, fewer)["shared/class"][2:] == ["+0.05", "measured otherwise"]
    few = records(record("shared/class", 0.2, error=None))
    assert compare_records(few, b)["shared/class"] == ["0.200", "0.950 ± 0.010", "+0.75", "not known of so few"]


def test_where_there_is_too_much_of_a_good_thing_the_nearer_one_is_better():
    """A spread of twice the error is no better than one of nine tenths; variance explained is nobody's merit."""
    a, b = (records(Record("spread/ratio", value, 0.01, 9, "a", "nearer ceiling", ceiling=1.0)) for value in (2, 0.9))
    assert (
        compare_records(a, b)["spread/ratio"][-1] == "second" and compare_records(b, a)["spread/ratio"][-1] == "first"
    )
    a, b = (records(record("spread/ratio", value, better="nearer ceiling")) for value in (2, 0.9))
    assert compare_records(a, b)["spread/ratio"][-1] == "neither", "a damaged record, of which no ceiling is known"
    a, b = (records(record("explained/c", value, better="neither")) for value in (0.2, 0.9))
    assert compare_records(a, b)["explained/c"][-1] == "neither"


def test_details_are_left_out_where_something_sums_them_up():
    a = records(record("shared/class", 0.9), record("shared/class/view0", 0.9), record("translation/a to b/psnr", 9))
    assert list(compare_records(a, a)) == ["shared/class", "translation/a to b/psnr"]


def test_two_runs(polydigits_run, copy_of, tmp_path, capsys):
    other = copy_of(polydigits_run)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("seed: 0", "seed: 7", 1))
    metrics = {"records": [record("shared/class", 0.5).to_json()]}
    (other / "metrics.json").write_text(json.dumps(metrics))
    compare(polydigits_run, other, tmp_path / "curves.png")
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("seed"))
    assert row.split()[-2:] == ["0", "7"]
    assert "is not evaluated" in printed and "no figure in both" in printed
    assert Image.open(tmp_path / "curves.png").size[0] > 600
    assert set(read_curves(other)["stage 1, loss"][0]) == {3, 6}


def test_what_was_measured_otherwise_is_a_setting_that_differs(polydigits_run, copy_of, tmp_path, capsys):
    """The settings of the evaluation itself count, not those of the recipe, which a call may have changed."""
    other = copy_of(polydigits_run)
    settings = read_run(other).evaluate.model_copy(update={"num_samples": 3}).model_dump(mode="json")
    for metrics in ({"settings": settings}, {"settings": {"unknown": 1}}, {}):
        (other / "metrics.json").write_text(json.dumps({"records": []} | metrics))
        compare(polydigits_run, other, tmp_path / "curves.png")
        printed = capsys.readouterr().out
        assert ("evaluate.num_samples" in printed) == (metrics.get("settings") == settings)


@pytest.mark.parametrize(
    ("stage", "known"), [("vae", "hashes"), ("diffusion", "hashes"), ("vae", "hashes_of_decoding")]
)
def test_figures_of_other_weights_are_said_to_be_so(polydigits_run, copy_of, tmp_path, stage, known):
    """A retrained run keeps its metrics.json until it is evaluated again; earlier versions wrote no hashes there."""
    run, records = copy_of(polydigits_run), [record("shared/class", 0.5).to_json()]
    metrics = {"records": records, "weights": getattr(mandorla.load(run), known)}
    (run / "metrics.json").write_text(json.dumps(metrics))
    with warnings.catch_warnings():
        warnings.simplefilter("error", MandorlaWarning)
        compare(polydigits_run, run, tmp_path / "curves.png")
    path = run / stage / "weights.safetensors"
    tensors, _ = load_tensors(path)
    save_tensors(path, {name: z + 1 for name, z in tensors.items()})
    with pytest.warns(MandorlaWarning, match=f"figures of {run} are of other weights .*: run `mandorla evaluate {run}"):
        compare(polydigits_run, run, tmp_path / "curves.png")
    (run / "metrics.json").write_text(json.dumps({"records": records}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", MandorlaWarning)
        compare(polydigits_run, run, tmp_path / "curves.png")


def test_a_run_beside_itself(polydigits_run, tmp_path, capsys):
    compare(polydigits_run, polydigits_run, tmp_path / "curves.png")
    assert "settings: no difference" in capsys.readouterr().out
    assert (tmp_path / "curves.png").is_file()


def test_curves_are_drawn_where_they_are():
    """Two lines, of which the second ends higher; the same twice is another picture."""
    low, high = {"stage 1, loss": ([1, 2], [0.0, 1.0])}, {"stage 1, loss": ([1, 2], [0.0, 2.0])}
    pictures = [np.asarray(Image.open(io.BytesIO(draw_curves({"a": low, "b": x})))) for x in (high, low)]
    assert pictures[0].shape == pictures[1].shape and (pictures[0] != pictures[1]).any()


def test_drawing_leaves_a_notebook_its_backend():
    matplotlib.use("svg")
    draw_curves({"a": {"loss": ([1, 2], [0.0, 1.0])}, "b": {}})
    curves("vae", [(1, "train", {"loss": 1.0})])
    assert matplotlib.get_backend() == "svg"


def test_what_is_no_run_or_no_figures_is_named(polydigits_run, copy_of, tmp_path):
    with pytest.raises(MandorlaError, match="not a run folder"):
        compare(polydigits_run, tmp_path, tmp_path / "x.png")
    other = copy_of(polydigits_run)
    for content in ('{"records": [1]}', '{"records": [{"name": "a"}]}'):
        (other / "metrics.json").write_text(content)
        with pytest.raises(MandorlaError, match="holds no figures: run `mandorla evaluate"):
            compare(polydigits_run, other, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_what_stands_in_brackets_is_shown_as_it_is(polydigits_run, copy_of, tmp_path, capsys):
    """Lists of names and of paths, and folders called so, look like marks of the terminal's library."""
    run = copy_of(polydigits_run).rename(tmp_path / "x [old]")
    (tmp_path / "nets.py").touch()
    text = (run / "config.yaml").read_text()
    for old, new in (("imports: []", f"imports: [{tmp_path}/nets.py]"), ("[tensorboard]", "[tensorboard, mlflow]")):
        assert old in text
        text = text.replace(old, new)
    (run / "config.yaml").write_text(text)
    compare(polydigits_run, run, tmp_path / "curves.png")
    printed = "".join(capsys.readouterr().out.split())
    assert f"[{tmp_path}/nets.py]" in printed and "[tensorboard,mlflow]" in printed
    assert f"{run}isnotevaluated".replace(" ", "") in printed
