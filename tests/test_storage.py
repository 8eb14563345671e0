"""Small files are whole or absent, and a damaged one is one clear line."""

from pathlib import Path

import pytest

from mandorla.errors import MandorlaError
from mandorla.storage import locked, partial, read_json, whole, whole_folder, write_text


def test_round_trip_leaves_nothing_beside(tmp_path):
    write_text(tmp_path / "a.json", '{"a": 1}')
    write_text(tmp_path / "a.json", '{"a": 2}')
    assert read_json(tmp_path / "a.json") == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"])
def test_missing_or_damaged_is_named(tmp_path, content):
    path = tmp_path / "model.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MandorlaError, match="model.json cannot be read"):
        read_json(path)


@pytest.mark.parametrize("content", ["[]", "{}", "3"])
def test_json_without_what_is_expected_is_named(tmp_path, content):
    write_text(tmp_path / "model.json", content)
    with pytest.raises(MandorlaError, match="model.json does not hold weights: restore it"):
        read_json(tmp_path / "model.json", "weights")


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a.json", "old")
    with (
        pytest.raises(MandorlaError, match="a.json cannot be written .*No space left"),
        whole(tmp_path / "a.json") as part,
    ):
        part.write_text("ha")
        raise OSError(28, "No space left on device")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_disk_that_may_only_be_read_is_named(tmp_path, monkeypatch):
    """There even the removal of what was never made fails."""

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    for method in ("write_text", "unlink"):
        monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(MandorlaError, match="a.json cannot be written .*Read-only file system.*: make room, or choose"):
        write_text(tmp_path / "a.json", "new")


def test_one_command_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(MandorlaError, match="another command is writing here"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_file_is_locked_before_it_is_there(tmp_path):
    one, other = tmp_path / "a.lock", tmp_path / "b.lock"
    with locked(one), pytest.raises(MandorlaError, match="another command"), locked(one):
        pass
    with locked(one), locked(other):
        pass


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_whole_or_what_was_there_stays(tmp_path, there):
    target = tmp_path / "out"
    if there:
        target.mkdir()
        (target / "old").touch()
    (partial(target) / "left").mkdir(parents=True)  # of a command that was killed
    with pytest.raises(MandorlaError, match="broken"), whole_folder(target) as folder:
        assert not list(folder.iterdir())
        (folder / "new").touch()
        raise MandorlaError("broken")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"] * there
    with whole_folder(target) as folder, pytest.raises(MandorlaError, match="another command"), whole_folder(target):
        (folder / "new").touch()
    with whole_folder(target) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]
