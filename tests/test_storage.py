"""Small files are whole or absent, and a damaged one is one clear line."""

import pytest

from mandorla.errors import MandorlaError
from mandorla.storage import read_json, write_text


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
