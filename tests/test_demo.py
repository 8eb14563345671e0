"""The demo: each part is a run of its own, trained, then evaluated; settings reach it."""

from pathlib import Path

import pytest

from mandorla import demo
from mandorla.demo import PARTS, run_demo, run_part
from mandorla.errors import MandorlaError


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_trained_and_evaluated_in_its_folder(part, tmp_path, monkeypatch):
    calls = []
    for name in ("train_vae", "train_diffusion", "evaluate"):
        monkeypatch.setattr(demo, name, lambda given, name=name: calls.append((name, given)))
    run_part(part, tmp_path / "a demo", 5, ["device=cpu"])
    folder = tmp_path / "a demo" / PARTS[part]
    assert [name for name, _ in calls] == ["train_vae", "train_diffusion", "evaluate"]
    for _, recipe in calls[:2]:
        assert (recipe.data.kind, recipe.seed, recipe.device) == (part, 5, "cpu")
        assert Path(recipe.run) == folder
    assert Path(calls[2][1]) == folder


def test_a_misspelt_setting_leaves_nothing(tmp_path):
    with pytest.raises(MandorlaError, match="unknown key `sed`"):
        run_demo(tmp_path / "demo", 0, ["sed=1"])
    assert not (tmp_path / "demo").exists()
