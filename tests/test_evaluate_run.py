"""A whole evaluation of a model with known answers: figures, files, repetition, missing modalities, mistakes."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluate_fakes import BarModel, Bars, BarVAE, column, half
from tiny import scans_recipe, write_scans

import mandorla
from mandorla.config import Settings, dump
from mandorla.data.dataset import Splits, evenly
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.evaluate import EvaluateConfig, Record, audit_run, evaluate, evaluate_run, protocol
from mandorla.evaluate.figures import separation
from mandorla.evaluate.gather import choose, gather
from mandorla.evaluate.images import psnr, ssim
from mandorla.evaluate.judges import find_judges
from mandorla.evaluate.report import print_summary
from mandorla.evaluate.run import other_data
from mandorla.latents import Latents, Layout
from mandorla.storage import locked
from mandorla.vae.objective import LossConfig
from mandorla.vae.training import train_vae

SETTINGS = EvaluateConfig(
    num_train=300,
    num_test=100,
    num_generated=60,
    num_translated=12,
    num_samples=3,
    judge_steps=60,
    judge_batch_size=64,
    label="bar",
    private_label="half",
)


class BarsConfig(Settings):
    kind: str = "bars"


class StageTwo(Settings):
    mode: str = "joint"


class StageOne(Settings):
    loss: LossConfig = LossConfig()


class BarsRecipe(Settings):
    seed: int = 0
    device: str = "cpu"
    data: BarsConfig = BarsConfig()
    vae: StageOne = StageOne()
    diffusion: StageTwo = StageTwo()


class RunModel(BarModel):
    recipe = BarsRecipe()


def only(*suites: str, **changes) -> EvaluateConfig:
    return SETTINGS.model_copy(update={"suites": suites, **changes})


def by_name(metrics) -> dict[str, Record]:
    return {record["name"]: Record(**record) for record in metrics["records"]}


def evaluated(run, **more) -> dict[str, Record]:
    return by_name(evaluate_run(RunModel(run, **more), SETTINGS))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("bars")


@pytest.fixture(scope="module")
def records(run):
    return evaluated(run)


def test_a_perfect_model_scores_like_the_ceiling(records):
    for name in ("shared/class", "shared/class mlp", "private/half mlp", "coherence/self", "coherence/cross"):
        assert records[name].value >= records[name].ceiling - 0.02 > 0.95
    for name in ("swap/class", "swap/class residual", "swap/agreement", "swap/half", "joint/agreement"):
        assert records[name].value > 0.95
    assert records["coherence/cross from 2"].value == records["coherence/self from 3"].value == 1
    assert records["coherence/cross from left alone"].value == 1
    apart = records["joint/half dependence"]
    assert apart.value < 2 * apart.ceiling + 0.05, "private factors of two views know nothing of each other"
    assert records["separation/shared_kept"].value > 0.95 and records["separation/private_kept"].value > 0.95
    assert records["reconstruction/psnr/left"].value == 100
    assert records["separation/private_known"].error > 0, "also where all samples are measured at once"


def test_how_many_views_are_given_is_said(records):
    assert "2 random views" in records["coherence/cross from 2"].definition
    assert "all 3 views" in records["coherence/self from 3"].definition


def test_its_leaks_and_its_control_are_at_chance(records):
    for name in ("private/residual/half", "private/residual/half mlp"):
        assert records[name].value > 0.95 and records[name].ceiling > 0.95 and records[name].better == "higher"
    of_class = ("private/class linear", "private/class mlp", "private/residual/class mlp")
    for name in (*of_class, "shared/half mlp", "shared/half faint", "shared/half above noise"):
        assert abs(records[name].value - records[name].chance) < 0.1
    for name in ("information/critic", "information/gaussian"):
        assert abs(records[name].value - records[name].control) < 0.03
    for name in ("mixture", "independent"):
        other = records[f"joint/agreement {name}"]
        assert other.value > 0.95 and other.chance == records["joint/agreement"].chance, "one shared part for all views"
    joint = records["joint/agreement"]
    assert joint.chance == pytest.approx(1 / 16, abs=0.02) and joint.control < 0.2


def test_a_model_of_independent_views_is_found_out(tmp_path):
    records = by_name(evaluate_run(RunModel(tmp_path, coherent=False), only("coherence")))
    for name in ("coherence/cross", "joint/agreement"):
        assert abs(records[name].value - records[name].chance) < 0.1


def test_everything_is_written_and_nothing_left_half_done(run, records):
    names = {path.name for path in (run / "pictures").iterdir()}
    assert {"samples.png", "translation_left_to_top.png", "swap_right.png", "interpolation_shared.png"} <= names
    assert {"neighbours_pixels.png", "neighbours_features.png"} <= names and not list(run.rglob("*partial*"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert [Record(**record) for record in metrics["records"]] == list(records.values())
    assert metrics["settings"]["label"] == "bar" and sum(metrics["seconds"].values()) > 0
    assert {"judges", "codes", "fidelity", "audit", "pictures"} <= metrics["seconds"].keys()
    assert metrics["changed"] == [] and metrics["baseline"] is None
    page = (run / "report.html").read_text()
    assert all(name in page for name in records) and "kind: bars" in page


def test_the_same_evaluation_again_gives_the_same_figures(run, records):
    assert evaluated(run) == records


class LeakyVAE(BarVAE):
    layout = Layout(BarVAE.layout.shapes | {name: (6,) for name in BarVAE.layout.modalities})

    def posterior(self, name, features, c):
        return torch.cat([super().posterior(name, features, c)[0], column(features)], 1), torch.full((len(c), 6), -3.0)


class Leaky(RunModel):
    """Keep the bar in the private parts too."""

    vae = LeakyVAE()

    def encode(self, x, present=None):
        latents = super().encode(x, present)
        private = {name: torch.cat([u, column(x[name])], 1) for name, u in latents.private.items()}
        return Latents(latents.shared, private)

    def _private(self, num, seed, wanted):
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.rand(num, 6, generator=generator) for name in wanted}

    def decode(self, latents, keys=None, refined=True):
        return super().decode(Latents(latents.shared, {name: u[:, :2] for name, u in latents.private.items()}))


def test_a_planted_leak_is_found_with_labels_and_without(tmp_path):
    found = by_name(evaluate_run(Leaky(tmp_path), only("disentanglement")))
    for name in ("private/class linear", "private/class mlp"):
        assert found[name].value > 0.95
    for view in ("left", "right", "top"):
        for kind in ("critic", "gaussian"):
            record = found[f"information/{kind}/{view}"]
            assert record.value > record.control + 0.5 and (record.p is None if kind == "critic" else record.p < 0.02)


class Folded(RunModel):
    """Keep the half of a view in the shared part, as the product of two signs."""

    def encode(self, x, present=None):
        latents = super().encode(x, present)
        upper = half(next(iter(x.values()))).argmax(1) * 2 - 1
        sign = torch.randint(2, upper.shape, generator=torch.Generator().manual_seed(len(upper))) * 2 - 1
        return Latents(torch.cat([latents.shared, torch.stack([sign, sign * upper], 1)], 1), latents.private)

    def decode(self, latents, keys=None, refined=True):
        return super().decode(Latents(latents.shared[:, :4], latents.private))


def test_a_leak_into_the_shared_part_that_no_line_shows_is_found(tmp_path):
    found = by_name(evaluate_run(Folded(tmp_path), only("disentanglement", num_residual=0)))
    assert found["shared/half"].value < 0.7 and found["shared/half mlp"].value > 0.8


class Faint(RunModel):
    """Keep the half of a view in the shared part, a thousand times fainter than the class."""

    def encode(self, x, present=None):
        latents = super().encode(x, present)
        upper = half(next(iter(x.values())))[:, :1] - 0.5
        return Latents(latents.shared + 1e-3 * upper, latents.private)


def test_a_leak_far_below_the_noise_is_found_and_told_from_one_above_it(tmp_path):
    found = by_name(evaluate_run(Faint(tmp_path), only("disentanglement", num_residual=0)))
    faint, heard = found["shared/half faint"], found["shared/half above noise"]
    assert faint.value > 0.95 and abs(heard.value - heard.chance) < 0.1 and faint.better == heard.better == "lower"


def test_only_what_is_asked_for_is_computed(tmp_path, monkeypatch):
    """No classifier is trained and nothing encoded for an audit; its pictures are those of samples and neighbours."""
    model = RunModel(tmp_path)
    monkeypatch.setattr(model, "encode", None)
    metrics = evaluate_run(model, only("audit"))
    assert {record["name"].split("/")[0] for record in metrics["records"]} == {"copies"}
    assert not (tmp_path / "evaluate").exists()
    assert metrics["pictures"] == ["samples", "neighbours_pixels", "neighbours_features"]
    assert metrics["seconds"].keys() == {"data", "samples", "audit", "pictures"}
    assert "measured audit" in (tmp_path / "report.html").read_text()


def test_pictures_of_before_make_way_and_those_of_others_stay(tmp_path):
    evaluate_run(RunModel(tmp_path), only("translation"))
    (tmp_path / "pictures" / "mine.png").write_bytes(b"")
    assert (tmp_path / "pictures" / "translation_left_to_top.png").exists()
    evaluate_run(RunModel(tmp_path), only("audit"))
    names = {path.stem for path in (tmp_path / "pictures").iterdir()}
    assert names == {"samples", "neighbours_pixels", "neighbours_features", "mine"}


def test_what_is_left_of_an_earlier_evaluation_stops_none_and_names_no_file_elsewhere(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "photo.png"
    run.mkdir()
    elsewhere.touch()
    for damaged in ('{"records": [1', '{"pictures": 3}', json.dumps({"pictures": ["../../photo", ["x"]]})):
        (run / "metrics.json").write_text(damaged)
        evaluate_run(RunModel(run), only("translation"))
        assert json.loads((run / "metrics.json").read_text())["records"]
    assert elsewhere.is_file()


def test_another_folder_is_written_and_what_was_changed_noted(tmp_path):
    run, out = tmp_path / "run", tmp_path / "new" / "folder"
    run.mkdir()
    evaluate_run(RunModel(run), only("translation"), out=out, changed=["evaluate.num_samples=3"])
    assert json.loads((out / "metrics.json").read_text())["changed"] == ["evaluate.num_samples=3"]
    assert (out / "report.html").exists() and not list(run.iterdir())


def test_where_nothing_can_be_written_nothing_is_computed(tmp_path, monkeypatch):
    """Also where another evaluation is at it: both would write files of one name."""
    model = BarModel(tmp_path)
    monkeypatch.setattr("mandorla.evaluate.run.Subject", lambda *_: pytest.fail("computes"))
    (tmp_path / "file").touch()
    with pytest.raises(MandorlaError, match="file cannot be written .*: give --out another folder"):
        evaluate_run(model, EvaluateConfig(), out=tmp_path / "file")
    (tmp_path / "busy" / "pictures").mkdir(parents=True)
    with locked(tmp_path / "busy" / "pictures"), pytest.raises(MandorlaError, match="another command is writing here"):
        evaluate_run(model, EvaluateConfig(), out=tmp_path / "busy")


def test_judges_that_cannot_be_kept_are_used_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr("mandorla.evaluate.judges.save_judges", refuse)
    settings = EvaluateConfig(label="bar", judge_steps=1)
    with pytest.warns(MandorlaWarning, match="judges cannot be kept for another evaluation .read-only"):
        assert find_judges(tmp_path / "j", BarModel(tmp_path).data(), settings, 0, "cpu")


def test_translations_are_compared_with_a_baseline_in_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr("mandorla.evaluate.run.recorded_fingerprint", lambda run: "the same")
    worse, settings = RunModel(tmp_path / "worse", coherent=False), only("translation", num_translated=40)
    found = by_name(evaluate_run(RunModel(tmp_path / "a"), settings, baseline=worse))
    for kind, sign in (("psnr mean", 1), ("mae mean foreground", -1)):
        for route in ("", "left to top/"):
            gain = found[f"translation/{route}{kind} against baseline"]
            assert sign * gain.value > 0 and gain.p < 0.01 and gain.n == 40 and "worse" in gain.definition
    one = found["translation/left to top/psnr mean"]
    assert one.sd == pytest.approx(one.error * np.sqrt(one.n))
    found = by_name(evaluate_run(RunModel(tmp_path / "b"), settings, baseline=RunModel(tmp_path / "same")))
    gain = found["translation/psnr mean against baseline"]
    assert gain.value == 0 and gain.p == 1
    with pytest.raises(MandorlaError, match="a baseline is compared in translation"):
        evaluate_run(RunModel(tmp_path / "c"), only("audit"), baseline=worse)


def test_a_baseline_of_other_data_is_refused(polydigits_run, phantom_run, tmp_path):
    model = mandorla.load(polydigits_run)
    with pytest.raises(MandorlaError, match="was trained on other data, or on another division"):
        evaluate_run(model, only("translation"), baseline=mandorla.load(phantom_run), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_records_are_unique_and_say_what_they_are(records):
    for record in records.values():
        assert record.definition.endswith(".") and record.n > 0 and np.isfinite(record.value)
        assert record.error is None if record.group == "information" else np.isfinite(record.error)


def test_what_can_be_too_much_is_better_the_nearer_its_ceiling(records):
    nearer = {name.split("/")[-1] for name, record in records.items() if record.better == "nearer ceiling"}
    assert {"spread ratio", "spread coverage", "random precision", "random density"} <= nearer
    assert all(record.ceiling is not None for record in records.values() if record.better == "nearer ceiling")
    assert {record.better for name, record in records.items() if name.startswith("explained/")} == {"neither"}


def test_no_text_promises_a_copy_of_what_has_another_shape(signals_run, tmp_path):
    model = mandorla.load(signals_run)
    settings = model.recipe.evaluate.model_copy(update={"suites": ("translation",), "num_translated": 8})
    records = by_name(evaluate_run(model, settings, out=tmp_path))
    assert "translation/psnr mean" in records
    for record in records.values():
        for reference in ("chance", "ceiling", "control"):
            assert (f"{reference}:" in record.definition) == (getattr(record, reference) is not None), record


def test_a_report_on_signals_shows_them(signals_run, tmp_path):
    model = mandorla.load(signals_run)
    assert evaluate_run(model, model.recipe.evaluate, out=tmp_path)["weights"] == model.hashes
    assert json.loads((tmp_path / "metrics.json").read_text())["weights"].keys() == {"vae", "diffusion"}
    names = {path.stem for path in (tmp_path / "pictures").iterdir()}
    assert {"samples", "translation_pressure_to_flow", "swap_flow", "interpolation_private"} <= names


@pytest.mark.parametrize("lacking", [None, "train", "val", "test"])
@pytest.mark.parametrize("share", ["some", "all"])
def test_labels_of_files_are_measured(lacking, share, scans_run, copy_of, monkeypatch):
    """A class by name and a packed mask; a class that some samples lack is measured on the others."""
    model = mandorla.load(copy_of(scans_run))
    if lacking:
        data = model.data()
        part = getattr(data, lacking)
        kind = part.labels["kind"].copy()
        kind[part.rows[: 4 if share == "some" else None]] = -1
        data = replace(data, **{lacking: replace(part, labels=part.labels | {"kind": kind})})
        monkeypatch.setattr(model, "data", lambda: data)
    measured = lacking in (None, "val") or share == "some"
    settings = model.recipe.evaluate.model_copy(update={"suites": ("disentanglement", "coherence")})
    found = by_name(evaluate_run(model, settings))
    assert {"lesion/known from t1", "lesion/contrast kept", "lesion/dice"} <= found.keys()
    assert ("shared/class" in found) == ("coherence/cross" in found) == ("swap/class" in found) == measured
    assert ("no label 'kind' with classes" in _page(model.run)) == (not measured)
    if measured:
        right = found["shared/class/t1"].value * (len(model.data().test) - 4 * (lacking == "test"))
        assert right == pytest.approx(round(right)), "of those that have it, so many are right"


def test_a_mask_of_another_size_is_one_clear_line(scans_run, copy_of, monkeypatch):
    model = mandorla.load(copy_of(scans_run))
    data = model.data()
    data.test.labels["lesion_mask"] = data.test.labels["lesion_mask"][:, None]
    monkeypatch.setattr(model, "data", lambda: data)
    settings = model.recipe.evaluate.model_copy(update={"suites": ("disentanglement", "coherence")})
    with pytest.raises(MandorlaError, match=r"'lesion_mask' has shape \(1, 8, 8\), but images of t2 have \(8, 8\)"):
        evaluate_run(model, settings)


def test_a_label_of_numbers_is_one_clear_line(scans_run, copy_of, monkeypatch):
    model = mandorla.load(copy_of(scans_run))
    data = model.data()
    for part in (data.train, data.test):
        part.labels["age"] = np.linspace(20, 80, len(part.labels["kind"]))
    monkeypatch.setattr(model, "data", lambda: data)
    settings = model.recipe.evaluate.model_copy(update={"label": "age"})
    with pytest.raises(
        MandorlaError, match=r"evaluate\.label.* 'age' holds numbers, not classes.* \(kind, lesion_present"
    ):
        evaluate_run(model, settings)
    assert not (model.run / "report.html").exists()


def _page(run):
    return (run / "report.html").read_text().replace("&#39;", "'")


class Patients(Bars):
    """Four samples of each patient; the left view is missing in all of every third patient, the right in one sample."""

    def batch(self, indices):
        batch = super().batch(indices)
        patient = np.asarray(indices) // 4
        batch.factors["group"] = patient
        batch.present["left"] = torch.as_tensor(patient % 3 != 0)
        batch.present["right"] = torch.as_tensor(np.asarray(indices) % 4 != 0)
        return batch


def test_figures_over_all_routes_count_every_patient_once(tmp_path, monkeypatch):
    """Routes of different patients: counted per route, one patient would stand for several in errors and tests."""
    monkeypatch.setattr("mandorla.evaluate.run.recorded_fingerprint", lambda run: "the same")
    model, worse = RunModel(tmp_path / "a", coherent=False), RunModel(tmp_path / "b", coherent=False)
    model.data = lambda: Splits(Bars(300, 0), Bars(50, 1), Patients(48, 2))
    found = by_name(evaluate_run(model, only("translation", num_translated=48), baseline=worse))
    kinds = ("psnr mean", "psnr mean against baseline", "spread coverage")
    assert {found[f"translation/{kind}"].n for kind in kinds} == {12}
    assert found["translation/left to top/psnr mean"].n == 8 and found["translation/right to top/psnr mean"].n == 12
    assert [found[f"reconstruction/psnr/{name}"].n for name in ("left", "right", "top")] == [8, 12, 12]


class Slices(Bars):
    """Every sample four times, as slices of one patient."""

    @property
    def groups(self):
        return np.array([f"patient {k // 4}" for k in range(len(self))])

    def batch(self, indices):
        batch = super().batch(np.asarray(indices) // 4)
        batch.factors["group"] = self.groups[indices]
        return batch


def test_slices_of_a_patient_are_one_wherever_errors_are_computed(tmp_path):
    model = RunModel(tmp_path, coherent=False)
    model.data = lambda: Splits(Slices(400, 0), Slices(50, 1), Slices(100, 2))
    suites = ("disentanglement", "coherence", "fidelity", "audit")
    found = by_name(evaluate_run(model, only(*suites, num_translated=100, num_residual=40)))
    for name in (
        *("ceiling/class", "shared/class", "shared/class/left", "shared/class/all", "private/half", "shared/half mlp"),
        *("retrieval/recall at 1", "retrieval/recall at 1/left to top", "information/critic"),
        *("explained/shared alone", "explained/shared alone/left", "separation/shared_kept"),
    ):
        assert found[name].n == 25, name
    assert 95 < found["information/gaussian"].n <= 100, "of 400 training samples"
    for name in ("coherence/self", "coherence/cross", "coherence/cross from 2", "swap/class", "swap/agreement"):
        assert found[name].n == 25, f"{name}: 60 samples, evenly chosen, are of all patients"
    distance, real = found["fidelity/random frechet/left"], len({k // 4 for k in choose(model.data().test, 60, 0)})
    assert (
        distance.n == real < 60
        and f"60 generated samples beside as many real test samples of {real} patients" in distance.definition
    )
    assert "test samples 100 of 25 patients" in _page(tmp_path)
    assert "of 25 patients and count as 25 independent ones" in found["copies/distance in pixels"].definition
    assert found["joint/agreement"].n == 60, "generated tuples are of no patient"


class PartlyBars(Bars):
    """Every third sample lacks its left view."""

    def batch(self, indices):
        batch = super().batch(indices)
        batch.present["left"] = torch.as_tensor(np.asarray(indices) % 3 != 0)
        batch.x["left"][~batch.present["left"]] = 0
        return batch


def test_missing_views_do_not_count(tmp_path):
    model = RunModel(tmp_path)
    model.data = lambda: Splits(PartlyBars(400, 0), PartlyBars(50, 1), PartlyBars(100, 2))
    records = by_name(evaluate_run(model, SETTINGS))
    assert records["shared/class/left"].n == 66 and records["shared/class/left"].value > 0.95
    assert records["translation/left to top/psnr mean"].n < 12
    assert records["retrieval/recall at 1/left to top"].n == 66
    assert records["retrieval/recall at 1/right to top"].n == 100
    found = records["retrieval/recall at 1"]
    routes = [record for name, record in records.items() if name.startswith("retrieval/recall at 1/")]
    of_each = [66, 66, 66, 66, 100, 100]
    assert sorted(1 / record.chance for record in routes) == pytest.approx(of_each)
    assert found.chance == pytest.approx(6 / sum(of_each)) and "among 66 to 100 test samples" in found.definition
    assert records["copies/ratio in pixels"].n == 60 and "with 266 of" in (tmp_path / "report.html").read_text()
    assert records["fidelity/random frechet/all together"].n < records["fidelity/random frechet/top"].n == 60
    mean, left = records["fidelity/random frechet"], records["fidelity/random frechet/left"]
    assert mean.n == left.n < 60 and mean.definition.startswith(left.definition.partition(":")[0])
    assert f" {left.n} generated samples" in mean.definition, "of the modality with fewest"


class PartlyLabelled(Bars):
    """The class of every fourth sample is not known."""

    def batch(self, indices):
        batch = super().batch(indices)
        batch.factors["bar"] = np.where(np.asarray(indices) % 4, batch.factors["bar"], -1)
        return batch


def test_the_report_says_on_how_many_samples_it_was_measured(tmp_path, monkeypatch):
    """As many as were, not as many as the settings allow."""
    monkeypatch.setattr(separation, "MOST", 50)
    monkeypatch.setattr(protocol, "MOST", 50)
    model = RunModel(tmp_path)
    model.data = lambda: Splits(PartlyLabelled(90, 0), Bars(50, 1), PartlyLabelled(100, 2))
    suites = ("disentanglement", "coherence", "fidelity")
    records = by_name(evaluate_run(model, only(*suites, num_generated=95, num_translated=30)))
    page = _page(tmp_path)
    assert records["coherence/self"].n == 75 and "p(private | shared) for 75 test samples" in page
    assert records["fidelity/random frechet/top"].n == 90 and "Fidelity. 90 generated tuples" in page
    assert records["retrieval/recall at 1"].n == 50 and "among those of 50 test samples, by cosine" in page
    assert records["separation/shared_kept"].n == 100 and "separation: 100 test samples" in page
    assert records["explained/shared alone"].n == 30 and "explained: 30 test samples" in page
    assert records["information/critic"].n == 50 and "measured on 50 test samples (InfoNCE)" in page


def test_what_information_is_compared_with_is_said(records):
    critic, gaussian = (records[f"information/{kind}/left"] for kind in ("critic", "gaussian"))
    assert "a second critic, trained on permuted pairs" in critic.definition and critic.p is None
    assert "mean of 100 permutations of the pairs; p: permutation test" in gaussian.definition and gaussian.p > 0
    assert "p:" not in records["information/gaussian"].definition


class Unpaired(Bars):
    """No sample has two views."""

    def batch(self, indices):
        batch = super().batch(indices)
        batch.present = {name: torch.as_tensor(np.asarray(indices) % 3 == k) for k, name in enumerate(batch.present)}
        return batch


def test_what_was_not_measured_is_not_described(tmp_path):
    model = RunModel(tmp_path)
    model.data = lambda: Splits(Unpaired(400, 0), Unpaired(50, 1), Unpaired(100, 2))
    records = by_name(evaluate_run(model, SETTINGS.model_copy(update={"label": "none", "private_label": "none"})))
    page = _page(tmp_path)
    assert not any(name.startswith(("translation/", "copies/", "retrieval/")) for name in records)
    for suite in ("Translation. ", "Copy audit. "):
        assert suite not in page
    for what in ("translation; no test sample has both", "the copy audit; no sample", "retrieval; too few"):
        assert f"Left out: {what}" in page


def test_fidelity_of_too_few_samples_says_so(tmp_path, capsys):
    metrics = evaluate_run(RunModel(tmp_path), only("fidelity", num_generated=10))
    assert "Left out: fidelity; it takes 20 test samples" in _page(tmp_path)
    print_summary(list(by_name(metrics).values()))
    assert "the report says" in capsys.readouterr().out


def test_the_mean_image_is_that_of_the_views_that_are_there(tmp_path):
    data, rows = PartlyBars(90, 0), np.arange(90)
    gathered = gather(RunModel(tmp_path), data, rows, {})
    full = Bars(90, 0).batch(rows).x
    torch.testing.assert_close(gathered.means["left"], full["left"][rows % 3 != 0].mean(0))
    torch.testing.assert_close(gathered.means["top"], full["top"].mean(0))
    assert torch.equal(gathered.latents.private["top"], RunModel().encode(full).private["top"])


def test_how_far_modalities_of_a_tuple_show_one_thing(tmp_path):
    """Generated bars are as bound to each other as real ones, which two of different samples are not."""
    metrics = evaluate_run(RunModel(tmp_path), SETTINGS.model_copy(update={"suites": ("fidelity",)}))
    for name in ("fidelity/pairs information", "fidelity/pairs edges"):
        record = by_name(metrics)[name]
        assert record.better == "nearer ceiling" and record.error < 0.05
        assert record.chance < record.ceiling and abs(record.value - record.ceiling) < record.value - record.chance


def test_without_labels_only_images_are_measured(tmp_path):
    metrics = evaluate_run(RunModel(tmp_path), SETTINGS.model_copy(update={"label": "none", "private_label": "none"}))
    groups = {record["name"].split("/")[0] for record in metrics["records"]}
    without = {"separation", "retrieval", "information", "explained"}
    assert groups == {"translation", "reconstruction", "copies", "fidelity"} | without
    of_fidelity = {record["name"].split()[0] for record in metrics["records"] if "fidelity" in record["name"]}
    assert of_fidelity == {"fidelity/random", "fidelity/pairs"}, "bars are too small for the window of ms-ssim"
    page = _page(tmp_path)
    assert "no label 'none' with classes" in page and "Without labels: retrieval: by the shared part" in page
    assert not any(text in page for text in ("Probes are fitted", "Coherence. Self", "'judge' is")), "none of it was"


def test_a_shared_part_that_is_borrowed_is_said_to_be(tmp_path):
    model = RunModel(tmp_path)
    model.recipe = BarsRecipe(diffusion=StageTwo(mode="conditional"))
    evaluate_run(model, only("audit"))
    assert "mode conditional" in (tmp_path / "report.html").read_text()


def test_an_unknown_modality_in_a_route_is_one_clear_line(tmp_path):
    settings = SETTINGS.model_copy(update={"routes": (("left", "rihgt"),)})
    with pytest.raises(
        MandorlaError, match=r"evaluate\.routes: unknown modality 'rihgt'; this model has left, right, top"
    ):
        evaluate_run(RunModel(tmp_path), settings)
    assert not list(tmp_path.iterdir())


def test_a_route_to_itself_is_one_clear_line(tmp_path):
    settings = only("translation", routes=(("left", "left"),))
    with pytest.raises(MandorlaError, match="left to left is no translation"):
        evaluate_run(RunModel(tmp_path), settings)


class SortedBars(Bars):
    """Samples come class by class."""

    def batch(self, indices):
        return super().batch(np.argsort(self.bar, kind="stable")[indices])


def test_sets_of_one_size_are_of_all_classes(tmp_path):
    """Of 400 training samples in order of class, the 60 that count are not the first ones."""
    ceilings = []
    for kind in (Bars, SortedBars):
        model = RunModel(tmp_path)
        model.data = lambda kind=kind: Splits(kind(400, 0), Bars(50, 1), Bars(60, 2))
        records = by_name(evaluate_run(model, only("fidelity", num_generated=200, num_test=200, num_train=200)))
        record = records["fidelity/judge frechet/left"]
        assert record.n == 60 and "60 generated samples beside as many real test samples" in record.definition
        ceilings.append(record.ceiling)
    assert ceilings[1] < 2 * ceilings[0]
    assert evenly(400, 4).tolist() == [0, 133, 266, 399] and evenly(2, 4).tolist() == [0, 1]


def test_progress_goes_forward_to_the_end(tmp_path):
    seen = []
    evaluate_run(RunModel(tmp_path), only("translation", "audit"), lambda what, share: seen.append(share))
    assert seen == sorted(seen) and seen[-1] == 1


class Lesions(Bars):
    """The bar is a lesion that only the right view shows; the left view is noise."""

    modalities = Bars.modalities[:2]

    def batch(self, indices):
        batch = super().batch(indices)
        rng = np.random.default_rng(0)
        noise = rng.random((len(self), 1, 8, 8)).astype(np.float32)
        bar, half = self.bar[indices], self.half["right"][indices]
        present = bar % 2 == 1
        mask = np.zeros((len(bar), 8, 8), bool)
        for b in np.flatnonzero(present):
            mask[b, 4 * half[b] : 4 * half[b] + 2, 2:4] = True
        right = 0.2 + 0.5 * torch.as_tensor(mask[:, None]).float()
        batch.x = {"left": torch.as_tensor(noise[indices]), "right": right}
        batch.present = {name: batch.present[name] for name in batch.x}
        batch.factors = {
            "lesion_present": present,
            "lesion_mask": mask,
            "clean_right": np.full_like(right.numpy(), 0.2),
        }
        return batch


class LesionModel(RunModel):
    """Everything is private, c is the left noise; the lesion is drawn at random."""

    modalities = Lesions.modalities
    test = Lesions(100, 2)

    def data(self):
        return Splits(Lesions(400, 0), Lesions(50, 1), self.test)

    def encode(self, x, present=None):
        shared = next(iter(x.values())).flatten(1)[:, :8]
        return Latents(shared, {name: image.flatten(1) for name, image in x.items()})

    def decode(self, latents, keys=None, refined=True):
        return {name: u.view(-1, 1, 8, 8) for name, u in latents.private.items()}

    def sample_private(self, shared, seed=0, wanted=None):
        rng = np.random.default_rng(seed)
        batch = self.data().val.batch(rng.integers(50, size=len(shared)))
        return Latents(shared, {name: batch.x[name].flatten(1) for name in wanted or batch.x})

    def sample(self, num, seed=0):
        latents = self.sample_private(torch.rand(num, 8), seed)
        return SimpleNamespace(x=self.decode(latents), latents=latents)


OF_LESIONS = only("disentanglement", "translation", lesion_modality="right", num_translated=80, label="none")


def test_a_lesion_of_one_view_stays_there(tmp_path):
    records = by_name(evaluate_run(LesionModel(tmp_path), OF_LESIONS))
    assert abs(records["lesion/known from left"].value - 0.5) < 0.2
    assert records["lesion/known from private right"].value > 0.95
    assert abs(records["lesion/foretold from left"].value - 0.5) < 0.2
    assert records["lesion/contrast kept"].value == pytest.approx(1)
    assert abs(records["lesion/rate from left"].value - 0.5) < 0.2
    assert (
        records["translation/left to right/anatomy psnr"].value
        > records["translation/left to right/anatomy psnr"].control
    )


def test_a_modality_that_shows_no_lesion_is_said(tmp_path):
    model = LesionModel(tmp_path)
    records = by_name(evaluate_run(model, OF_LESIONS.model_copy(update={"lesion_modality": "t2"})))
    assert not any(name.startswith("lesion/") for name in records)
    assert "evaluate.lesion_modality is 't2', the modalities are left, right: name the one" in _page(tmp_path)


@pytest.mark.parametrize("lesion", [0, 1])
def test_where_all_training_samples_are_alike_a_lesion_is_not_told(tmp_path, lesion):
    class Alike(LesionModel):
        def data(self):
            data = super().data()
            data.train.bar[:] = lesion
            return data

    records = by_name(evaluate_run(Alike(tmp_path), OF_LESIONS))
    assert {name for name in records if name.startswith("lesion/")} == {"lesion/contrast kept", "lesion/dice"}


def test_of_a_lesion_without_pairs_no_route_is_measured(tmp_path):
    class Alone(Lesions):
        def batch(self, indices):
            batch = super().batch(indices)
            odd = torch.as_tensor(np.asarray(indices) % 2 > 0)
            return replace(batch, present={"left": odd, "right": ~odd})

    model = LesionModel(tmp_path)
    model.test = Alone(100, 2)
    records = by_name(evaluate_run(model, OF_LESIONS))
    assert "lesion/foretold from left" not in records and "lesion/known from private right" in records


def test_of_a_lesion_only_routes_that_are_asked_for_are_drawn(tmp_path):
    settings = OF_LESIONS.model_copy(update={"routes": (("right", "left"),)})
    records = by_name(evaluate_run(LesionModel(tmp_path), settings))
    assert "lesion/foretold from left" not in records and records["lesion/contrast kept"].value == pytest.approx(1)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_what_is_not_defined_is_left_out_and_said(tmp_path):
    """No AUC, no contrast where no test sample has a lesion: NaN is no JSON."""
    model = LesionModel(tmp_path)
    model.test = Lesions(100, 2)
    model.test.bar[:] = 0
    records = by_name(evaluate_run(model, OF_LESIONS))
    assert {name for name in records if "lesion" in name} == {"lesion/rate from left"}
    assert "Left out: lesion/known from left, " in _page(tmp_path)
    known = [record for record in records.values() if record.group != "information"]
    assert all(np.isfinite([record.value, record.error]).all() for record in known)


def test_other_data_are_measured_on_the_scale_of_the_run(scans_run, tmp_path, capsys):
    """Scans of half the brightness stay dark: their own range does not count."""
    model = mandorla.load(scans_run)
    root = tmp_path / "others"
    root.mkdir()
    write_scans(root, brightness=200)
    recipe = tmp_path / "others.yaml"
    recipe.write_text(dump(scans_recipe(tmp_path / "unused", root)))
    own, other = model.data(), other_data(model, str(recipe))
    rows = np.arange(len(own.test))
    stored = other.test.x["t1"][other.test.rows[rows]]
    np.testing.assert_array_equal(other.test.batch(rows).x["t1"], model.to_unit({"t1": stored})["t1"])
    assert other.test.batch(rows).x["t1"].mean() < 0.5 * own.test.batch(rows).x["t1"].mean()
    assert torch.equal(other.train.batch(rows).x["t1"], own.train.batch(rows).x["t1"])
    evaluate(scans_run, ["evaluate.suites=[translation]"], data=str(recipe))
    assert json.loads((model.run / "other" / "metrics.json").read_text())["changed"][-1] == f"--data {recipe}"
    assert capsys.readouterr().out.endswith(f"report: {model.run / 'other' / 'report.html'}\n")


def test_subjects_of_other_data_have_a_range_of_their_own(tmp_path):
    """One of the same name is no subject of the run, and what a sample is does not depend on its batch."""
    recipes, per = [], "data.intensity={kind: percentile, per: subject}"
    for name, brightness in (("own", 400), ("others", 200)):
        (tmp_path / name).mkdir()
        write_scans(tmp_path / name, brightness=brightness)
        recipes.append(scans_recipe(tmp_path / f"{name}_run", tmp_path / name, per))
    train_vae(recipes[0])
    recipe = tmp_path / "others.yaml"
    recipe.write_text(dump(recipes[1]))
    model = mandorla.load(tmp_path / "own_run")
    own, other = model.data().test, other_data(model, str(recipe)).test
    assert set(own.groups) & set(other.groups)
    rows = np.arange(len(other))
    whole = other.batch(rows).x["t1"]
    stored, groups = other.x["t1"][other.rows], other.groups
    np.testing.assert_array_equal(whole, model.to_unit({"t1": stored}, groups)["t1"])
    torch.testing.assert_close(torch.cat([other.batch([row]).x["t1"] for row in rows]), whole)
    assert whole.mean() > 0.9 * own.batch(np.arange(len(own))).x["t1"].mean(), "half as bright, on its own scale"


def test_reconstructions_of_images_have_both_likenesses(phantom_run):
    """Of pictures that hold the window of SSIM; the mean training image is what knows nothing."""
    model = mandorla.load(phantom_run)
    found = by_name(evaluate_run(model, only("translation", num_translated=10)))
    train, test = (part.batch(np.arange(len(part))).x for part in (model.data().train, model.data().test))
    decoded = model.decode(model.encode(test))
    for name, image in decoded.items():
        for measure, function in (("psnr", psnr), ("ssim", ssim)):
            record = found[f"reconstruction/{measure}/{name}"]
            mean = train[name].mean(0, keepdim=True).expand_as(image)
            assert record.value == pytest.approx(function(image, test[name]).mean(), rel=1e-3)
            assert record.chance == pytest.approx(function(mean, test[name]).mean(), rel=1e-3)
            assert record.n == len(image) and record.better == "higher"


def test_other_data_that_do_not_fit(polydigits_run, scans_run, tmp_path, monkeypatch):
    with pytest.raises(MandorlaError, match=r"--data phantom: has the modalities t1 \(1, .* needs view0 \(3, 24, 24\)"):
        other_data(mandorla.load(polydigits_run), "phantom")
    model = mandorla.load(scans_run)
    own = replace(model.data(), classes={"kind": ("a", "b")})
    monkeypatch.setattr(model, "data", lambda: own)
    with pytest.raises(MandorlaError, match="the label 'kind' has the classes large, middle, small, in the run a, b"):
        other_data(model, str(scans_run))


def test_labels_that_other_data_lack_are_not_judged(scans_run, tmp_path):
    model = mandorla.load(scans_run)
    data = model.data()
    test = replace(data.test, labels={})
    settings = model.recipe.evaluate.model_copy(update={"suites": ("coherence",)})
    metrics = evaluate_run(model, settings, data=replace(data, test=test), out=tmp_path / "out")
    assert (
        metrics["records"] == []
        and "no label &#39;kind&#39; with classes" in (tmp_path / "out" / "report.html").read_text()
    )


def test_an_audit_beside_too_few_test_samples_is_refused(scans_run, copy_of, monkeypatch):
    run = copy_of(scans_run)
    monkeypatch.setattr("mandorla.evaluate.figures.copies.least_noticed", lambda *_: None)
    with pytest.raises(MandorlaError, match="too few, or of too few patients, for an audit"):
        audit_run(run, ["evaluate.num_generated=12"])


@pytest.mark.parametrize("copies", [True, False])
def test_an_audit_fails_where_samples_are_copies(copies, scans_run, copy_of, monkeypatch, capsys):
    run = copy_of(scans_run)

    def remember(self, num, seed=0, steps=None):
        return SimpleNamespace(x=self.data().train.batch(np.arange(num)).x, latents=None)

    if copies:
        monkeypatch.setattr("mandorla.model.Mandorla.sample", remember)
    assert audit_run(run, ["evaluate.num_generated=12"], threshold=0.5 if copies else 1.0) is not copies
    assert (run / "audit" / "report.html").exists() and not (run / "report.html").exists()
    assert capsys.readouterr().out.endswith(f"report: {run / 'audit' / 'report.html'}\n")


def test_stage_1_alone_has_its_figures(polydigits_run, copy_of):
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "diffusion")
    with pytest.raises(MandorlaError, match="no trained stage 2"):
        evaluate(run)
    few = ["evaluate.num_train=60", "evaluate.num_test=40", "evaluate.judge_steps=3"]
    found = {record.name for record in evaluate(run, ["evaluate.suites=[disentanglement]", *few])}
    assert {"shared/class", "separation/shared_kept"} <= found and (run / "report.html").is_file()


def test_lesions_and_residuals_need_no_stage_2(phantom_run, polydigits_run, copy_of):
    """What is drawn is left out, and the report says so; it is there once stage 2 is."""
    few = [
        "evaluate.suites=[disentanglement]",
        "evaluate.num_train=60",
        "evaluate.num_test=40",
        "evaluate.judge_steps=3",
    ]
    few += ["evaluate.num_residual=30", "evaluate.quantities=[]"]
    for whole, drawn in ((phantom_run, "lesion/foretold from t1"), (polydigits_run, "private/residual/class mlp")):
        run = copy_of(whole)
        assert drawn in {record.name for record in evaluate(run, few)}
        shutil.rmtree(run / "diffusion")
        found = {record.name for record in evaluate(run, few)}
        assert drawn not in found and "separation/shared_kept" in found
        assert "stage 2 is not trained" in (run / "report.html").read_text()
