"""Files of weights: whole or not there, and read with a clear error."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from mandorla import checkpoint
from mandorla.checkpoint import _no_more_than, hash_tensors, load_tensors, save_tensors
from mandorla.errors import MandorlaError


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.arange(3)}, {"step": "1"})

    def broken(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", broken)
    with pytest.raises(MandorlaError, match="a.safetensors cannot be written .disk full."):
        save_tensors(path, {"x": torch.arange(9)})
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    tensors, metadata = load_tensors(path)
    assert tensors["x"].tolist() == [0, 1, 2]
    assert metadata == {"step": "1"}


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(MandorlaError, match="is missing: train this stage first"):
        load_tensors(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(MandorlaError, match="cannot be read .* delete .* and make it again"):
        load_tensors(tmp_path / "bad.safetensors")


def test_hash_sees_names_shapes_types_and_values():
    x = {"a": torch.arange(6.0), "b": torch.ones(2)}
    others = [
        {"a": x["a"], "c": x["b"]},
        {"a": x["a"].view(2, 3), "b": x["b"]},
        {"a": x["a"].double(), "b": x["b"]},
        {"a": x["a"] + torch.tensor([0, 0, 0, 0, 0, 1e-6]), "b": x["b"]},
    ]
    assert len({hash_tensors(tensors) for tensors in (x, *others)}) == 5
    assert hash_tensors(dict(reversed(x.items()))) == hash_tensors(x)
    lying = x["a"].view(2, 3).T.contiguous().T
    assert hash_tensors({"a": lying}) == hash_tensors({"a": x["a"].view(2, 3)})


def test_what_other_threads_build_is_not_counted():
    """Several may load a run at once, as the page does."""
    with ThreadPoolExecutor(1) as other, _no_more_than(6):
        assert other.submit(lambda: nn.Linear(100, 100)).result().weight.shape == (100, 100)
        with pytest.raises(RuntimeError, match="more weights than there are in the file"):
            nn.Linear(100, 100)
