"""Arrays of unknown length on disk, and a cache that several commands may want at once."""

from concurrent.futures import ThreadPoolExecutor
from time import sleep

import numpy as np
import pytest

from mandorla.data.cache import MANIFEST, Column, keep
from mandorla.errors import MandorlaError


def write(folder):
    np.save(folder / "0.npy", np.arange(6).reshape(3, 2))
    return {"names": ["x"], "more": 1}


def test_a_column_grows_widens_and_leaves_holes(tmp_path):
    column = Column(tmp_path / "0.npy")
    column.add_missing(2)
    column.add(np.full((1, 3), 5, np.int16))
    column.add_missing(1)
    column.widen(np.float32)
    column.add(np.full((9, 3), 0.5, np.float64))
    column.add_missing(3)
    column.close()
    expected = np.concatenate([np.zeros(2), [5, 0], np.full(9, 0.5), np.zeros(3)])
    found = np.load(tmp_path / "0.npy", mmap_mode="r")
    assert found.dtype == np.float32 and found.shape == (16, 3)
    np.testing.assert_array_equal(found, expected[:, None].repeat(3, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["0.npy"]


def test_what_is_kept_is_written_once(tmp_path):
    calls = []

    def count(folder):
        calls.append(folder)
        return write(folder)

    for _ in range(2):
        kept = keep(tmp_path / "cache", "k", count)
        assert isinstance(kept.arrays["x"], np.memmap) and kept.notes["more"] == 1
        np.testing.assert_array_equal(kept.arrays["x"], np.arange(6).reshape(3, 2))
    assert len(calls) == 1
    keep(tmp_path / "cache", "other", count)
    assert len(calls) == 2
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["k", "other"]


@pytest.mark.parametrize("damage", ["cut", "absent", "manifest"])
def test_what_is_damaged_is_written_anew(tmp_path, damage):
    keep(tmp_path, "k", write)
    path = tmp_path / "k" / ("0.npy" if damage != "manifest" else MANIFEST)
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    assert keep(tmp_path, "k", write).arrays["x"].sum() == 15


def test_nothing_half_written_stays(tmp_path):
    def fail(folder):
        write(folder)
        raise MandorlaError("a broken file")

    with pytest.raises(MandorlaError, match="a broken file"):
        keep(tmp_path, "k", fail)
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_kept_it_lasts_as_long_as_it_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "file").touch()
    for folder in (None, tmp_path / "file" / "below"):
        kept = keep(folder, "k", write)
        assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is left behind"
        assert kept.arrays["x"].sum() == 15


def test_a_full_disk_is_one_line(tmp_path):
    def fail(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(MandorlaError, match="No space left on device.; make room, or choose another folder"):
        keep(tmp_path, "k", fail)


def test_who_wants_it_at_the_same_time_waits(tmp_path):
    calls = []

    def slowly(folder):
        calls.append(folder)
        sleep(0.2)
        return write(folder)

    with ThreadPoolExecutor(4) as pool:  # a lock is of an open folder: threads exclude each other as processes do
        kept = list(pool.map(lambda _: keep(tmp_path / "cache", "k", slowly), range(4)))
    assert [k.arrays["x"].sum() for k in kept] == [15] * 4 and len(calls) == 1
