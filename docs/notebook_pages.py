"""Turn executed notebooks into pages of the site: text as it is, code and what it printed as blocks, pictures as files.

The notebooks themselves are made by `make notebooks`, which runs every cell.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path


def write(notebooks: Path, folder: Path) -> None:
    """Write a page for each notebook into `folder`, and its pictures beside it."""
    folder.mkdir(exist_ok=True)
    for path in sorted(notebooks.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        blocks = [
            block for number, cell in enumerate(cells) for block in _blocks(cell, folder / f"{path.stem}-{number}")
        ]
        (folder / f"{path.stem}.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _blocks(cell: dict, picture: Path) -> Iterator[str]:
    """Yield the parts of a page that a cell becomes; a picture that it shows is written to `picture` and `.png`."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield text
        return
    shell = "%%bash\n"
    yield f"```{'sh' if text.startswith(shell) else 'python'}\n{text.removeprefix(shell)}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            path = picture.with_suffix(".png")
            path.write_bytes(base64.b64decode(data["image/png"]))
            yield f"![What the lines above show]({path.name})"
        elif printed := "".join(output.get("text") or data.get("text/plain", "")).rstrip():
            yield f"```text\n{printed}\n```"
