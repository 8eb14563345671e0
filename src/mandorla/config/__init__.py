"""Typed settings: frozen, strict, printable.

Every class that can be configured has a settings class beside it that derives from `Settings`; its attribute
docstrings are the meaning that `mandorla config` prints. Values come from defaults < YAML file < `key.sub=value` on
the command line:

    load_settings(cls, *, path: Path | None = None, overrides: Sequence[str] = ()) -> cls

A union of settings classes is told apart by its field `kind: Literal[...]` (a *tagged* union, declared with
`Field(discriminator="kind")`). The rules of merging:

- a block (a settings class) is merged key by key; every other value, also a list or a mapping, is replaced whole
- a block that does not name its `kind` keeps the one it has; a block that names another one starts again from the
  defaults of the new kind, so keys that belonged to the old kind are dropped
- a file may name another one that it starts from, `base: ../other.yaml`, relative to itself; so is every other path
  in it that its class marks with `Relative`, while a path on the command line is meant from the current folder
- on the command line `kind` is set before the other keys, and the value is YAML: `size=[3, 4]`, `name="007"`
- YAML is read by the version 1.2 core schema: `1e-4` is a number, `no` is a word, a repeated key is an error
"""

from mandorla.config.load import checked, dump, dump_brief, load_settings
from mandorla.config.mistakes import COMMAND_LINE
from mandorla.config.rows import Row, describe, differences
from mandorla.config.settings import Relative, Settings
from mandorla.config.yaml import read_yaml

CONFIG = "config.yaml"  # of a run folder

__all__ = [
    "COMMAND_LINE",
    "CONFIG",
    "Relative",
    "Row",
    "Settings",
    "checked",
    "describe",
    "differences",
    "dump",
    "dump_brief",
    "load_settings",
    "read_yaml",
]
