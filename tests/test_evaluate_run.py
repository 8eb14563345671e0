"""A whole evaluation of a model with known answers: figures, files, repetition, missing modalities, mistakes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluate_fakes import BarModel, Bars

import mandorla
from mandorla.config import Settings
from mandorla.data.dataset import Splits
from mandorla.errors import MandorlaError
from mandorla.evaluate import EvaluateConfig, Record, evaluate_run
from mandorla.evaluate.gather import gather

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


class BarsRecipe(Settings):
    seed: int = 0
    device: str = "cpu"
    data: BarsConfig = BarsConfig()
    diffusion: StageTwo = StageTwo()


class RunModel(BarModel):
    recipe = BarsRecipe()


def evaluated(run, **more) -> dict[str, Record]:
    metrics = evaluate_run(RunModel(run, **more), SETTINGS)
    return {record["name"]: Record(**record) for record in metrics["records"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("bars")


@pytest.fixture(scope="module")
def records(run):
    return evaluated(run)


def test_a_perfect_model_scores_like_the_ceiling(records):
    for name in ("shared/class", "shared/class/all", "private/half", "coherence/self", "coherence/cross"):
        assert records[name].value >= records[name].ceiling - 0.02 > 0.95
    for name in ("swap/class", "swap/class residual", "swap/agreement", "swap/half", "joint/agreement"):
        assert records[name].value > 0.95
    assert records["reconstruction/left"].value == 100


def test_its_leaks_and_its_control_are_at_chance(records):
    for name in ("private/class linear", "private/class mlp", "private/residual/class mlp", "shared/half"):
        assert abs(records[name].value - records[name].chance) < 0.1
    joint = records["joint/agreement"]
    assert joint.chance == pytest.approx(1 / 16, abs=0.02) and joint.control < 0.2


def test_a_model_of_independent_views_is_found_out(tmp_path):
    records = evaluated(tmp_path, coherent=False)
    for name in ("coherence/cross", "joint/agreement"):
        assert abs(records[name].value - records[name].chance) < 0.1


def test_everything_is_written_and_nothing_left_half_done(run, records):
    names = {path.name for path in (run / "pictures").iterdir()}
    assert {"samples.png", "translation_left_to_top.png", "swap_right.png", "interpolation_shared.png"} <= names
    assert "neighbours.png" in names and not list(run.rglob("*partial*"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert [Record(**record) for record in metrics["records"]] == list(records.values())
    assert metrics["settings"]["label"] == "bar" and sum(metrics["seconds"].values()) > 0
    page = (run / "report.html").read_text()
    assert all(name in page for name in records) and "kind: bars" in page


def test_the_same_evaluation_again_gives_the_same_figures(run, records):
    assert evaluated(run) == records


def test_records_are_unique_and_say_what_they_are(records):
    for record in records.values():
        assert record.definition.endswith(".") and record.n > 0 and np.isfinite([record.value, record.error]).all()


@pytest.mark.parametrize("complete", [True, False])
def test_labels_of_files_are_measured(complete, scans_run, copy_of, monkeypatch):
    """A class by name and a packed mask; a class that one sample lacks is left out."""
    model = mandorla.load(copy_of(scans_run))
    if not complete:
        data = model.data()
        data.train.labels["kind"][7] = -1
        monkeypatch.setattr(model, "data", lambda: data)
    metrics = evaluate_run(model, model.recipe.evaluate)
    names = {record["name"] for record in metrics["records"]}
    assert {"lesion/known from t1", "lesion/contrast kept"} <= names
    assert ("shared/class" in names) == complete
    assert ("no classes 'kind' of every sample" in _page(model.run)) != complete


def _page(run):
    return (run / "report.html").read_text().replace("&#39;", "'")


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
    records = {record["name"]: Record(**record) for record in evaluate_run(model, SETTINGS)["records"]}
    assert records["shared/class/left"].n == 66 and records["shared/class/left"].value > 0.95
    assert records["translation/left to top/psnr mean"].n < 12


def test_the_mean_image_is_that_of_the_views_that_are_there(tmp_path):
    data, rows = PartlyBars(90, 0), np.arange(90)
    gathered = gather(RunModel(tmp_path), data, rows, {})
    full = Bars(90, 0).batch(rows).x
    torch.testing.assert_close(gathered.means["left"], full["left"][rows % 3 != 0].mean(0))
    torch.testing.assert_close(gathered.means["top"], full["top"].mean(0))
    assert torch.equal(gathered.latents.private["top"], RunModel().encode(full).private["top"])


def test_without_labels_only_images_are_measured(tmp_path):
    metrics = evaluate_run(RunModel(tmp_path), SETTINGS.model_copy(update={"label": "none", "private_label": "none"}))
    groups = {record["name"].split("/")[0] for record in metrics["records"]}
    assert groups == {"translation", "reconstruction", "copies"}
    assert "no classes 'none' of every sample" in (tmp_path / "report.html").read_text().replace("&#39;", "'")


def test_a_shared_part_that_is_borrowed_is_said_to_be(tmp_path):
    model = RunModel(tmp_path)
    model.recipe = BarsRecipe(diffusion=StageTwo(mode="conditional"))
    evaluate_run(model, SETTINGS.model_copy(update={"label": "none"}))
    assert "mode conditional" in (tmp_path / "report.html").read_text()


def test_an_unknown_modality_in_a_route_is_one_clear_line(tmp_path):
    settings = SETTINGS.model_copy(update={"routes": (("left", "rihgt"),)})
    with pytest.raises(
        MandorlaError, match=r"evaluate\.routes: unknown modality 'rihgt'; this model has left, right, top"
    ):
        evaluate_run(RunModel(tmp_path), settings)
    assert not list(tmp_path.iterdir())


def test_progress_goes_forward_to_the_end(tmp_path):
    seen = []
    evaluate_run(
        RunModel(tmp_path), SETTINGS.model_copy(update={"label": "none"}), lambda what, share: seen.append(share)
    )
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


def test_a_lesion_of_one_view_stays_there(tmp_path):
    from mandorla.latents import Latents

    class Model(RunModel):
        """Everything is private, c is the left noise; the lesion is drawn at random."""

        modalities = Lesions.modalities

        def data(self):
            return Splits(Lesions(400, 0), Lesions(50, 1), Lesions(100, 2))

        def encode(self, x, present=None):
            shared = next(iter(x.values())).flatten(1)[:, :8]
            return Latents(shared, {name: image.flatten(1) for name, image in x.items()})

        def decode(self, latents):
            return {name: u.view(-1, 1, 8, 8) for name, u in latents.private.items()}

        def sample_private(self, shared, seed=0, wanted=None):
            rng = np.random.default_rng(seed)
            batch = self.data().val.batch(rng.integers(50, size=len(shared)))
            return Latents(shared, {name: batch.x[name].flatten(1) for name in wanted or batch.x})

        def sample(self, num, seed=0):
            latents = self.sample_private(torch.rand(num, 8), seed)
            return SimpleNamespace(x=self.decode(latents), latents=latents)

    settings = SETTINGS.model_copy(update={"lesion_modality": "right", "num_translated": 80, "label": "none"})
    records = {r["name"]: Record(**r) for r in evaluate_run(Model(tmp_path), settings)["records"]}
    assert abs(records["lesion/known from left"].value - 0.5) < 0.2
    assert records["lesion/known from private right"].value > 0.95
    assert abs(records["lesion/foretold from left"].value - 0.5) < 0.2
    assert records["lesion/contrast kept"].value == pytest.approx(1)
    assert abs(records["lesion/rate from left"].value - 0.5) < 0.2
    assert (
        records["translation/left to right/anatomy psnr"].value
        > records["translation/left to right/anatomy psnr"].control
    )
