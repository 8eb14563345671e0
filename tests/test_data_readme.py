"""The page on layouts of data: every example is a valid recipe, and no source is without one."""

import re
from pathlib import Path
from typing import get_args

import pytest

from mandorla.data import DataConfig
from mandorla.data.shards import ShardsConfig
from mandorla.data.stored import StoredConfig
from mandorla.recipe import read_recipe

PAGE = (Path(__file__).resolve().parents[1] / "data" / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(data:\n  kind: (\w+)\n.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("text", "kind"), EXAMPLES, ids=[kind for _, kind in EXAMPLES])
def test_examples_are_valid(tmp_path, text, kind):
    (tmp_path / "recipe.yaml").write_text(text)
    assert read_recipe(str(tmp_path / "recipe.yaml")).data.kind == kind


def test_every_source_of_own_data_has_an_example():
    own = (StoredConfig, ShardsConfig)
    sources = [source for source in get_args(get_args(DataConfig)[0]) if issubclass(source, own)]
    assert {source.model_fields["kind"].default for source in sources} == {kind for _, kind in EXAMPLES}
