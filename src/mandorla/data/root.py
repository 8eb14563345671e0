"""Where files lie: the folder that the paths in a source's settings are relative to."""

import os
from pathlib import Path
from typing import Annotated

from mandorla.config import Relative, Settings
from mandorla.errors import MandorlaError

VARIABLE = "MANDORLA_DATA"


class RootedConfig(Settings):
    """Say which folder the paths of a source are relative to."""

    root: Annotated[str | None, Relative()] = None
    """Folder that the paths here are relative to; without one, the environment variable MANDORLA_DATA, else the folder
    `data`. In a YAML file a relative one is meant from that file, on the command line from the current folder."""

    def locate(self, path: str) -> Path:
        """Return where the relative `path` lies."""
        return Path(self.root or os.environ.get(VARIABLE) or "data").expanduser() / path

    def find(self, path: str, source: str = "") -> Path:
        """Return where the file `path` lies. Raises `MandorlaError`, which says the `source` it comes from."""
        found = self.locate(path)
        if not found.is_file():
            raise MandorlaError(
                f"{found}: no such file{comes_from(source)}; put it there, or set data.root or {VARIABLE}"
            )
        return found

    def settle(self) -> "RootedConfig":
        """Return the same settings with the root as an absolute path, whatever the current folder will be."""
        return self.model_copy(update={"root": str(self.locate("").resolve())})


def comes_from(source: str) -> str:
    """Return the part of an error that says where what is missing can be had; empty where nobody said."""
    return f"; it comes from {source}" if source else ""
