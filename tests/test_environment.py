"""What is kept of the circumstances of a training."""

import json

import numpy as np
import pytest

from mandorla.environment import FILE, note_environment


def entries(folder):
    return json.loads((folder / FILE).read_text())


def test_every_training_is_noted(tmp_path):
    for seed in (3, 4):
        note_environment(tmp_path, seed)
    first, second = entries(tmp_path)
    assert (first["seed"], second["seed"]) == (3, 4)
    assert {"command", "date", "commit", "python", "machine"} <= first.keys()
    assert "torch" in first["packages"]
    (tmp_path / FILE).write_text("[{")
    note_environment(tmp_path, 5)
    assert [entry["seed"] for entry in entries(tmp_path)] == [5]


def test_what_pip_left_behind_without_a_name_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "~umpy-1.26.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    note_environment(tmp_path, 0)
    assert entries(tmp_path)[0]["packages"]["numpy"] == np.__version__


@pytest.mark.parametrize("path", ["", "."])
def test_git_need_not_be_there(tmp_path, monkeypatch, path):
    monkeypatch.setenv("PATH", path)
    note_environment(tmp_path, 0)
    assert entries(tmp_path)[0]["commit"] is None


def test_the_stages_of_a_run_have_one_each(polydigits_run):
    assert not (polydigits_run / FILE).exists()
    for stage in ("vae", "diffusion"):
        (entry,) = entries(polydigits_run / stage)
        assert entry["seed"] == 0
