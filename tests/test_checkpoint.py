"""Files of weights: whole or not there, and read with a clear error."""

from pathlib import Path

import pytest
import torch

from mandorla import checkpoint
from mandorla.checkpoint import load_tensors, save_tensors
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
