"""A file of tables, of which each benchmark writes its own section."""

import re
from pathlib import Path

from mandorla.storage import write_text


def write_section(path: Path, title: str, text: str, introduction: str) -> None:
    """Put `text` under the heading `title` of a Markdown file, in the place of what stood there; others stay.

    The file begins with the `introduction`.
    """
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    _, *sections = re.split(r"^## ", old, flags=re.MULTILINE)
    kept = {section.partition("\n")[0]: section.rstrip() for section in sections}
    kept[title] = f"{title}\n\n{text.rstrip()}"
    write_text(path, "\n\n".join([introduction.rstrip(), *(f"## {section}" for section in kept.values())]) + "\n")
