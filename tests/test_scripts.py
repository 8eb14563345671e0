"""The scripts outside the package: the two stages as users know them, and the helpers in `utils/`."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mandorla.data.images import decode_image

ROOT = Path(__file__).resolve().parents[1]
UTILS = sorted((ROOT / "utils").glob("*.py"))


def run(script: Path, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a script as a user does, without the package on the path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("folder", "script"), [("vae_uv", "vae_train.py"), ("diffusion_uv", "diffusion_train.py")])
def test_stage_scripts_are_short_and_find_the_package(folder, script):
    assert len((ROOT / folder / script).read_text().splitlines()) <= 15
    result = run(Path(script), "--help", cwd=ROOT / folder)
    assert result.returncode == 0, result.stderr
    assert "--dry-run" in result.stdout


@pytest.mark.parametrize("script", UTILS, ids=lambda path: path.name)
def test_every_helper_explains_itself(script):
    result = run(script, "--help")
    assert result.returncode == 0, result.stderr
    assert script.name in result.stdout


def test_arrays_to_folders(tmp_path):
    x = np.arange(2 * 4 * 5 * 2, dtype=np.uint8).reshape(2, 4, 5, 2)
    np.savez(tmp_path / "scans.npz", x=x, patient=[7, 8])
    np.save(tmp_path / "pd.npy", np.full((2, 4, 5), 0.25))
    script = ROOT / "utils" / "arrays_to_folders.py"
    arrays = ["t1=scans.npz:x:1", "pd=pd.npy", "--groups", "scans.npz:patient"]
    result = run(script, "out", *arrays, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out" / "pd").iterdir()) == ["7-00000.png", "8-00001.png"]
    np.testing.assert_array_equal(decode_image(tmp_path / "out" / "t1" / "8-00001.png")[0], x[1, :, :, 1])
    pd = decode_image(tmp_path / "out" / "pd" / "7-00000.png")
    assert pd.dtype == np.uint16
    assert np.all(pd == round(0.25 * 65535))
    assert run(script, "out", *arrays, cwd=tmp_path).returncode == 1, "an existing folder is left alone"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (["a"], "a: expected NAME=ARRAY"),
        (["a=none.npy"], "none.npy: cannot be read"),
        (["a=x.npz:good:7"], "x.npz:good:7: no channel 7 on the last axis"),
        (["a=x.npz:none"], "x.npz: no array 'none' in it"),
        (["a=x.npz:bad"], "x.npz:bad: values from"),
        (["a=x.npz:flat"], r"x.npz:flat: shape (3,), expected (N, H, W)"),
        (["a=x.npz:good", "b=x.npz:more"], "arrays of different length: a 1, b 2"),
        (["../a=x.npz:good"], "../a=x.npz:good: expected NAME=ARRAY, each name once"),
        (["a=x.npz:good", "a=x.npz:more"], "a=x.npz:more: expected NAME=ARRAY, each name once"),
        (["a=x.npz:none_there"], "x.npz:none_there: no image"),
        (["a=x.npz:good", "--num", "-1"], "--num takes a whole number from 1"),
        (["a=x.npz:good", "--groups", "x.npz:good"], "shape (1, 2, 2), expected a group for each of 1 images"),
        (["a=x.npz:good", "--groups", "x.npz:slash"], "'a/b-00000' can be no file's name"),
        (["a=x.txt"], "'x.txt' names no array; write FILE.npz:KEY"),
    ],
)
def test_arrays_to_folders_refuses(tmp_path, monkeypatch, arrays, message):
    good = np.zeros((1, 2, 2))
    arrays_of = {"good": good, "more": np.zeros((2, 2, 2)), "bad": good - 1, "flat": np.zeros(3)}
    np.savez(tmp_path / "x.npz", none_there=good[:0], slash=["a/b"], **arrays_of)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["arrays_to_folders.py", "out", *arrays])
    with pytest.raises(SystemExit, match=re.escape(message)) as caught:
        runpy.run_path(str(ROOT / "utils" / "arrays_to_folders.py"), run_name="__main__")
    assert isinstance(caught.value.code, str)  # which Python prints, to return 1
    assert not (tmp_path / "out").exists()


def test_results_table(tmp_path):
    script, figure = ROOT / "utils" / "results_table.py", {"error": 0.1, "n": 5, "definition": "A figure."}
    for name, value in (("one", 0.1), ("two", 0.3)):
        (tmp_path / name).mkdir()
        records = [figure | {"name": "shared/class", "value": value, "chance": 0.1}, figure | {"name": "x", "value": 1}]
        (tmp_path / name / "metrics.json").write_text(json.dumps({"records": records}))
    result = run(script, "one", "two", "--only", "shared", cwd=tmp_path)
    assert result.stdout.splitlines() == [
        "| figure | mean ± sd of 2 | chance | better |",
        "|---|---|---|---|",
        "| shared/class | 0.200 ± 0.141 | 0.100 | higher |",
    ]
    result = run(script, "one", "none", cwd=tmp_path)
    assert (result.returncode, result.stderr.splitlines()) == (
        1,
        ["none has no metrics.json: run `mandorla evaluate none` first"],
    )
