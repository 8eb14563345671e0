"""Sweeps and ablations: the trials they consist of, resuming, what is shared, the table and the advice."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import interrupted, same_training, scans_recipe, tiny_recipe, write_scans

import mandorla.evaluate.judges
import mandorla.trials
from mandorla.data import load_data
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.evaluate.record import Record
from mandorla.trials import (
    ABLATIONS,
    Result,
    Trial,
    _made_from,
    ablation_trials,
    recommend,
    run_trials,
    size_trials,
)

DISTILLED = ["vae.model.encoder_decoder.apart=true", "vae.distillation={steps: 2, batch_size: 8, steps_after: 4}"]
GRID = ["vae.model.shared.channels=2,4"]


def reader(run: Path, *more: str, name: str = "polydigits"):
    few = ("evaluate.num_train=100", "evaluate.judge_steps=3", "vae.training.steps=3")
    return lambda changes: tiny_recipe(run, name, *few, *more, *changes)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Return the folder and the results of two sizes with two seeds."""
    run = tmp_path_factory.mktemp("runs") / "swept"
    read = reader(run)
    return run, run_trials("sweep", size_trials(read, GRID), read, num_seeds=2)


def test_the_default_grid_halves_and_doubles(tmp_path):
    read = reader(tmp_path, "vae.model.private={channels: 1}", "vae.model.private_of={view1: {channels: 6}}")
    trials = {trial.name: trial.changes for trial in size_trials(read)}
    assert list(trials) == [f"shared={c}_private={u}" for c in (2, 4, 8) for u in (1, 2)]
    model = read(trials["shared=8_private=2"]).vae.model
    assert (model.shared.channels, model.private.channels, model.private_of["view1"].channels) == (8, 2, 12)


def test_a_grid_is_all_combinations(tmp_path):
    read = reader(tmp_path)
    trials = size_trials(read, [*GRID, "vae.loss.kl_weight=0.5,1"])
    assert [trial.name for trial in trials] == [
        "shared=2_loss.kl_weight=0.5",
        "shared=2_loss.kl_weight=1",
        "shared=4_loss.kl_weight=0.5",
        "shared=4_loss.kl_weight=1",
    ]
    recipe = read(trials[0].changes)
    assert (recipe.vae.model.shared.channels, recipe.vae.loss.kl_weight) == (2, 0.5)


@pytest.mark.parametrize("text", ["vae.model.shared.channels", "seed=1,2", "vae.loss.kl_weight=1,", "=1"])
def test_what_is_no_grid_is_refused(tmp_path, text):
    with pytest.raises(MandorlaError, match="--grid: expected"):
        size_trials(reader(tmp_path), [text])


def test_wrong_settings_are_refused_before_anything_is_trained(tmp_path):
    read = reader(tmp_path / "run")
    with pytest.raises(MandorlaError, match=r"unknown key `vae.model.shard`"):
        run_trials("sweep", size_trials(read, ["vae.model.shared.channels=2", "vae.model.shard=1"]), read)
    assert not (tmp_path / "run").exists()


def test_each_ablation_switches_one_thing_off(tmp_path):
    trials = ablation_trials(reader(tmp_path))
    has = [name for name in ABLATIONS if name not in ("u never left out", "no alignment", "c not distilled")]
    assert [trial.name for trial in trials] == ["full", *has], "what the recipe does not have is not left out"
    more = reader(tmp_path, "vae.loss={private_dropout: 0.5, alignment_weight: 1}", *DISTILLED)
    assert [trial.name for trial in ablation_trials(more)] == ["full", *ABLATIONS]
    assert ("vae.distillation=null",) in [trial.changes for trial in ablation_trials(more)]
    assert not trials[0].changes and all(len(trial.changes) == 1 for trial in trials[1:])
    without = ablation_trials(reader(tmp_path, "vae.loss.leak_weight=0"))
    assert [trial.name for trial in without] == [t.name for t in trials if t.name != "no leak bound"], "is off already"


def test_every_trial_is_a_run_folder_and_is_in_the_table(swept):
    run, results = swept
    for size, result in zip((2, 4), results, strict=True):
        assert result.numbers == size + 3 * 16
        for seed in (0, 1):
            folder = run / "sweep" / f"shared={size}" / f"seed{seed}"
            model = mandorla.load(folder)
            assert (model.vae.layout.shapes["shared"], model.recipe.seed) == ((size,), seed)
        assert [len(records) for records in result.figures.values()] == [2] * len(result.figures)
    assert [path.name for path in sorted((run / "judges").iterdir())] == ["seed0.safetensors", "seed1.safetensors"]
    content = json.loads((run / "sweep.json").read_text())
    assert content["recommended"] in {"shared=2", "shared=4"}
    assert [trial["changes"] for trial in content["trials"]] == [[f"vae.model.shared.channels={n}"] for n in (2, 4)]
    assert {Record(**r).seed for r in content["trials"][0]["records"]} == {0, 1}
    table = (run / "sweep.md").read_text()
    psnrs = [record.value for record in results[0].figures["reconstruction/psnr"]]
    assert f"| {sum(psnrs) / 2:.2f} ± " in table and "| shared=4 | 52 |" in table and "recommended: " in table
    assert not list(run.rglob("*.part"))


def test_the_same_again_trains_and_judges_nothing(swept, monkeypatch):
    run, results = swept
    read = reader(run)
    monkeypatch.setattr(mandorla.trials, "fit_vae", None)
    monkeypatch.setattr(mandorla.evaluate.judges, "train_judges", None)
    assert run_trials("sweep", size_trials(read, GRID), read, num_seeds=2) == results


def test_other_settings_of_the_training_are_refused_and_of_the_evaluation_measured(swept, copy_of, monkeypatch):
    run = copy_of(swept[0])
    read = reader(run, "vae.training.batch_size=8")
    with pytest.raises(MandorlaError, match="batch_size=16, not 8: choose another run folder"):
        run_trials("sweep", size_trials(read, GRID), read)
    assert (run / "sweep" / "shared=2" / "seed0" / "trial.json").read_text().count("records") == 1
    read = reader(run, "evaluate.num_test=20")
    (again, _) = run_trials("sweep", size_trials(read, GRID), read)
    assert [record.n for record in again.figures["reconstruction/psnr"]] == [20]
    assert same_training(*(folder / "sweep" / "shared=2" / "seed0" / "vae" for folder in (run, swept[0])))


def test_what_is_interrupted_goes_on_and_judges_are_shared(swept, tmp_path, monkeypatch):
    trained = []
    train = mandorla.evaluate.judges.train_judges
    monkeypatch.setattr(mandorla.evaluate.judges, "train_judges", lambda *args: trained.append(1) or train(*args))
    read = reader(tmp_path)
    with interrupted(2):
        run_trials("sweep", size_trials(read, GRID), read)
    folder = tmp_path / "sweep" / "shared=2" / "seed0"
    spent = json.loads((folder / "trial.json").read_text())
    assert list(spent) == ["seconds"] and not (tmp_path / "sweep.md").exists()
    (folder / "trial.json").write_text('{"seconds": 1000.0}')
    first, _ = run_trials("sweep", size_trials(read, GRID), read)
    assert same_training(folder / "vae", swept[0] / "sweep" / "shared=2" / "seed0" / "vae")
    assert first.mean("training/seconds") > 1000, "both parts count"
    assert len(trained) == 1


def test_a_trial_that_diverges_is_left_out(swept, copy_of):
    run = copy_of(swept[0])
    read = reader(run)
    trials = [Trial("wild", ("vae.training.learning_rate=1e30",)), *size_trials(read, GRID)]
    with pytest.warns(MandorlaWarning, match="wild is left out: .*not finite"):
        results = run_trials("sweep", trials, read)
    assert [result.trial for result in results] == trials[1:]
    with pytest.raises(MandorlaError, match="not finite"):
        run_trials("sweep", trials[:1], read)


def test_the_table_says_how_long_each_part_of_a_distillation_is(tmp_path):
    run_trials("sweep", [Trial("whole")], reader(tmp_path, *DISTILLED))
    steps = "3 steps of 16 samples, 2 of distillation of 8 samples, 4 after it, 1 seed(s) from 0."
    assert steps in (tmp_path / "sweep.md").read_text()


def test_figures_of_other_data_are_not_kept(tmp_path):
    (tmp_path / "scans").mkdir()
    write_scans(tmp_path / "scans")
    recipe = scans_recipe(tmp_path / "run", tmp_path / "scans")
    one = _made_from(recipe, load_data(recipe.data, 0).fingerprint)
    arrays = dict(np.load(tmp_path / "scans" / "scans.npz"))
    np.savez(tmp_path / "scans" / "scans.npz", **arrays | {"t1": arrays["t1"] * 0.5})
    assert one != _made_from(recipe, load_data(recipe.data, 0).fingerprint)


def test_ablation_of_files_with_labels(scans_run, tmp_path, monkeypatch):
    root = scans_run.parent / "scans"

    def read(changes):
        return scans_recipe(tmp_path, root, "vae.training.steps=2", *changes)

    trials = [trial for trial in ablation_trials(read) if trial.name in ("full", "no swap")]
    run_trials("ablate", trials, read)
    table = (tmp_path / "ablate.md").read_text()
    assert "# Ablation" in table and "| no swap |" in table and "cross, u shuffled" in table
    assert "recommended" not in table
    (judges,) = (tmp_path / "judges").iterdir()
    moved = shutil.copytree(root, tmp_path / "moved")
    monkeypatch.setattr(mandorla.trials, "fit_vae", None)
    run_trials("ablate", trials, lambda changes: read([f"data.root={json.dumps(str(moved))}", *changes]))


def test_data_without_classes(tmp_path):
    read = reader(tmp_path, name="phantom")
    (result,) = run_trials("ablate", [Trial("full")], read)
    assert "private/class mlp" not in result.figures
    assert result.leak == result.mean("separation/private_known")
    assert result.coherence == result.mean("separation/shared_kept")


def result(name: str, numbers: float, psnr: float, leak: float, coherence: float, chance: float = 0.1) -> Result:
    values = {
        "latents/numbers": numbers,
        "reconstruction/psnr": psnr,
        "private/class mlp": leak,
        "coherence/cross shuffled": coherence,
    }
    return Result(Trial(name), {key: [Record(key, v, 0.0, 1, "", chance=chance)] for key, v in values.items()})


def test_the_smallest_good_enough_is_recommended():
    results = [
        result("blurred", 8, 20.0, 0.10, 0.90),
        result("small", 16, 24.6, 0.12, 0.89),
        result("large", 32, 25.0, 0.11, 0.90),
        result("leaks", 12, 25.0, 0.30, 0.90),
        result("incoherent", 12, 25.0, 0.10, 0.80),
    ]
    chosen, why = recommend(results)
    assert chosen.trial.name == "small" and "fewest latent numbers" in why
    assert recommend(results[::-1])[0] is chosen


def test_a_leak_below_chance_is_worth_nothing():
    results = [result("lucky", 32, 25.0, 0.05, 0.9), result("small", 16, 25.0, 0.10, 0.9)]
    assert recommend(results)[0].trial.name == "small"


def test_where_none_is_good_enough_the_nearest_is_recommended():
    results = [result("leaks", 16, 25.0, 0.15, 0.9), result("blurred", 16, 22.0, 0.10, 0.9)]
    chosen, why = recommend(results)
    assert chosen.trial.name == "leaks" and "no trial is" in why and "leak 0.05 from the best" in why


def test_what_was_not_measured_of_all_does_not_count():
    """Validation samples of a single patient tell of no leak."""
    results = [result(str(n), n, psnr, 0.5, 0.9) for n, psnr in ((2, 20.0), (4, 25.0), (8, 25.1))]
    for each in results:
        del each.figures["private/class mlp"]
    assert results[0].leak is None
    chosen, text = recommend(results)
    assert chosen.trial.name == "4" and "recommended: 4" in text
