"""Write the pages of reference: the package from its docstrings, the settings and the command line from themselves."""

import ast
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "mandorla"
CHAPTERS = {
    "use": (
        "Use a trained run",
        [
            "model",
            "engine",
            "arguments",
            "regions",
            "latents",
            "latent_cache",
            "files",
            "edits",
            "inputs",
            "rows",
            "outputs",
            "serve/*",
        ],
    ),
    "networks": ("Networks", ["nets/*"]),
    "data": ("Data", ["data/*", "check/*"]),
    "stage-1": ("Stage 1", ["vae/*", "trials"]),
    "stage-2": ("Stage 2", ["diffusion/*"]),
    "refiner": ("The refiner", ["refiner/*"]),
    "training": (
        "Training and run folders",
        [
            *["training", "training_log", "progress", "checkpoint", "replay", "track", "device", "parallel", "sharded"],
            *["processes", "recipe", "config/*", "storage", "environment", "imports", "registry"],
        ],
    ),
    "evaluate": ("Evaluation", ["evaluate/*", "evaluate/figures/*", "compare"]),
}


def write(folder: Path) -> None:
    """Write all pages into `folder`; files that would not change are left as they are."""
    pages = {"commands": _commands(), "settings": _settings(), "index": _index()}
    for name, (title, patterns) in CHAPTERS.items():
        modules = [path for pattern in patterns for path in sorted(SOURCE.glob(f"{pattern}.py"))]
        pages[name] = "\n".join([f"# {title}\n", *(_module(path) for path in modules)])
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _index() -> str:
    names = "\n".join(["commands", "settings", *CHAPTERS])
    return f"# Reference\n\nMade from the package itself.\n\n```{{toctree}}\n{names}\n```\n"


# ------------------------------------------------------------------------------------------------------------- package


def _module(path: Path) -> str:
    """Return a section on a module: what it opens with, then its public functions and classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name = ".".join(["mandorla", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
    text = [f"## {name}\n", f"```{{py:module}} {name}\n```\n", ast.get_docstring(tree) or ""]
    public = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and _is_public(node)]
    return "\n".join([*text, *("\n".join(_item(node, name)) for node in public), ""])


def _is_public(node: ast.AST) -> bool:
    return not node.name.startswith("_") and bool(ast.get_docstring(node))


def _item(node: ast.FunctionDef | ast.ClassDef, module: str, inside: str = "") -> Iterator[str]:
    """Yield the lines on a function, a method, or a class with its public methods and what it holds."""
    name = f"{inside}{node.name}"
    if isinstance(node, ast.FunctionDef):
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        is_property = any("property" in text for text in decorators)
        kind = "property" if is_property else "method" if inside else "function"
        result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        arguments = "" if is_property else f"({_without_self(node)}){result}"
        yield from _directive(kind, name + arguments, module, ast.get_docstring(node))
        return
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    start = next((item for item in methods if item.name == "__init__"), None)
    arguments = f"({_without_self(start)})" if start else ""
    yield from _directive("class", name + arguments, module, ast.get_docstring(node))
    for item, text in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            yield f"- `{item.target.id}`: {' '.join(text.value.value.split())}\n"
    for method in filter(_is_public, methods):
        yield from _item(method, module, f"{name}.")


def _without_self(function: ast.FunctionDef) -> str:
    text = ast.unparse(function.args)
    first, _, others = text.partition(",")
    return others.strip() if first in ("self", "cls") else text


def _directive(kind: str, signature: str, module: str, text: str | None) -> list[str]:
    return [f"::::{{py:{kind}}} {signature}", f":module: {module}", "", text or "", "::::", ""]


# ---------------------------------------------------------------------------------------------- settings and commands


def _settings() -> str:
    """Return every key as `mandorla config` lists them, a section per block."""
    from mandorla.config import describe
    from mandorla.recipe import Recipe

    text = ["# Settings\n", "Every key of a recipe; `mandorla config` prints the same.\n"]
    for block, rows in groupby(describe(Recipe), lambda row: row.key.partition(".")[0]):
        text.append(f"## {block}\n")
        for when, group in groupby(rows, lambda row: row.when):
            text += [f"With `{when}`:\n"] if when else []
            for row in group:
                value = f" = `{row.default}`" if row.default else ""
                text.append(f"`{row.key}`{value}, {row.type.replace('<', '&lt;')}\n: {row.meaning or '-'}\n")
    return "\n".join(text)


def _commands() -> str:
    """Return every verb of the command line with its arguments and options."""
    import typer

    from mandorla.cli import app

    text = [
        "# Commands\n",
        "`mandorla VERB --help` prints the same. `--debug` anywhere shows the traceback of an error.\n",
    ]
    pending = [("mandorla", typer.main.get_command(app))]
    while pending:
        name, command = pending.pop(0)
        if children := getattr(command, "commands", None):
            pending = [(f"{name} {verb}", child) for verb, child in children.items()] + pending
            continue
        metavars = [p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument"]
        text.append(f"## {name}\n\n    {' '.join([name, *metavars])}\n\n{command.help}\n")
        for parameter in command.params:
            shown = ", ".join(parameter.opts) if parameter.param_type_name == "option" else parameter.metavar
            if getattr(parameter, "help", None):
                text.append(f"`{shown or parameter.name.upper()}`\n: {parameter.help}\n")
    return "\n".join(text)
