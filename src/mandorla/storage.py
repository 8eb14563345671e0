"""Small files of a run folder: there whole or not at all, and read with a clear error."""

import json
import os
from pathlib import Path
from typing import Any

from mandorla.errors import MandorlaError


def write_text(path: Path, text: str) -> None:
    """Write `text` beside `path`, then rename it into place."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def read_json(path: Path) -> Any:
    """Return what the JSON file at `path` holds. Raises MandorlaError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MandorlaError(f"{path} cannot be read ({error}): restore it, or train this stage again") from error
