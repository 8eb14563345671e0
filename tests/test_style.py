"""The house style, as far as a machine can read it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "mandorla"
MODULES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
TEXTS = [
    path
    for folder in ("src", "tests", "vae_uv", "diffusion_uv", "utils", "benchmarks", "docs", ".ci")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".yaml", ".yml", ".md", ".toml", ".jinja", ".html", ".sh", ""} and path.is_file()
]
DEFINITIONS = (ast.ClassDef, ast.FunctionDef)
ABSOLUTE = re.compile(r"(?<![\w.:/})<-])(/(work|home|root|tmp|opt|usr|mnt|data|srv|var|Users)/|[A-Z]:\\\\)\w")


def tree_of(module: str) -> ast.Module:
    return ast.parse((SOURCE / module).read_text(encoding="utf-8"))


def public_functions(module: str) -> list[ast.FunctionDef]:
    """Return the public functions of a module and the public methods of its public classes."""
    body = tree_of(module).body
    for cls in [node for node in body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]:
        body = body + cls.body
    return [node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def inherited(cls: ast.ClassDef) -> set[str]:
    """Return the methods that a base class of ours documents, and torch's `forward`."""
    names = {"forward"}
    for base in cls.bases:
        name = base.id if isinstance(base, ast.Name) else getattr(base, "attr", "")
        names |= set(METHODS.get(name, ()))
    return names


METHODS = {
    node.name: [item.name for item in node.body if isinstance(item, DEFINITIONS) and ast.get_docstring(item)]
    for module in MODULES
    for node in ast.walk(tree_of(module))
    if isinstance(node, ast.ClassDef)
}


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_documented(module):
    tree = tree_of(module)
    bare = [] if ast.get_docstring(tree) or not tree.body else ["the module"]
    for node in tree.body:
        if not isinstance(node, DEFINITIONS) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            bare.append(node.name)
        if isinstance(node, ast.ClassDef):
            known = inherited(node)
            bare += [
                f"{node.name}.{item.name}"
                for item in node.body
                if isinstance(item, DEFINITIONS)
                and not item.name.startswith("_")
                and item.name not in known
                and not ast.get_docstring(item)
            ]
    assert not bare


@pytest.mark.parametrize("module", MODULES)
def test_module_docstrings_are_short(module):
    assert len((ast.get_docstring(tree_of(module)) or "").splitlines()) <= 30


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_take_no_loose_keywords_and_no_mutable_defaults(module):
    for node in public_functions(module):
        assert node.args.kwarg is None, f"{node.name} takes **{node.args.kwarg.arg}"
        defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp)
        assert not any(isinstance(value, mutable) for value in defaults), f"{node.name} has a mutable default"


def test_no_absolute_paths():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in TEXTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if ABSOLUTE.search(line) and not line.startswith("#!")
    ]
    assert not found


def test_nothing_imports_against_the_data_flow():
    """data, nets and latents know no stage; stages and the model know no command line; evaluate knows no trainer."""
    trainer = ("training", "training_log", "checkpoint", "sharded")
    forbidden = {
        "data/": ("vae", "diffusion", "model", *trainer, "evaluate", "cli", "nets"),
        "nets/": ("vae", "diffusion", "model", *trainer, "evaluate", "cli"),
        "latents.py": ("vae", "diffusion", "model", *trainer, "evaluate", "cli", "data", "nets"),
        "latent_cache.py": ("vae", "diffusion", "model", "evaluate", "cli"),
        "vae/": ("diffusion", "model", "cli"),
        "diffusion/": ("model", "cli"),
        **{f"diffusion/{name}.py": ("vae",) for name in ("config", "labels", "model", "path", "samplers", "store")},
        **dict.fromkeys(
            (f"{name}.py" for name in (*trainer, "device")), ("vae", "diffusion", "model", "evaluate", "cli")
        ),
        "engine.py": ("model", "evaluate", "cli"),
        "arguments.py": ("vae", "diffusion", "model", *trainer, "evaluate", "cli"),
        "evaluate/": (*trainer, "cli", "serve"),
        "serve/": (*trainer, "cli"),
    }
    wrong = []
    for module in MODULES:
        for place, names in forbidden.items():
            if not module.startswith(place):
                continue
            for node in ast.walk(tree_of(module)):
                imported = node.module if isinstance(node, ast.ImportFrom) else None
                if imported and any(f"{imported}.".startswith(f"mandorla.{name}.") for name in names):
                    wrong.append(f"{module} imports {imported}")
    assert not wrong
