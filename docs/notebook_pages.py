"""Executed notebooks as pages of the site: text as it is, code and what it printed as blocks, pictures as files.

`make notebooks` runs this file, which runs every cell of every notebook again.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path


def execute(notebooks: Path) -> None:
    """Run the notebooks in a folder from top to bottom and keep what they show."""
    import nbformat
    from nbclient import NotebookClient

    for path in sorted(notebooks.glob("*.ipynb")):
        notebook, place = nbformat.read(path, as_version=4), {"metadata": {"path": str(path.parent)}}
        NotebookClient(notebook, timeout=None, resources=place, record_timing=False, coalesce_streams=True).execute()
        nbformat.write(notebook, path)
        print(f"executed: {path.name}")


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
        elif printed := "".join(output.get("text") or data.get("text/plain", "")).strip("\n"):
            yield f"```text\n{printed}\n```"


if __name__ == "__main__":
    execute(Path(__file__).parent / "notebooks")
