"""A recipe's `imports`: the user's own Python files and modules, imported wherever the recipe is read.

They register networks and datasets (`register`). A file is run once, and again when it has changed. What it registered
counts anew with every reading, so that two runs may bring different ones of one name.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from mandorla.data.python import DATASETS
from mandorla.errors import MandorlaError
from mandorla.nets.diffusion_network import DIFFUSION_NETWORKS
from mandorla.nets.encoder_decoder import ENCODER_DECODERS

REGISTERS = (ENCODER_DECODERS, DIFFUSION_NETWORKS, DATASETS)
SUFFIX = ".py"  # of files; everything else is the name of a module
Own = TypeVar("Own")
_beside: list[str] = []  # folders of files that were imported, the latest first
_files: dict[Path, tuple[int, list[tuple[str, Any]]]] = {}  # time of change, what was registered


def register(name: str) -> Callable[[Own], Own]:
    """Make an `EncoderDecoder`, a `DiffusionNetwork` or a dataset available in recipes under `name`.

    Raises MandorlaError if what stands below is none of these, or the name is that of a network of mandorla's own.
    """

    if not isinstance(name, str):
        raise MandorlaError(f'register takes a name, not {name!r}: write @register("name") above the class')

    def add(own: Own) -> Own:
        if any(name in register.taken for register in REGISTERS):
            raise MandorlaError(f"register({name!r}): mandorla has a network of this name: choose another")
        home = next((register for register in REGISTERS if register.fits(own)), None)
        if home is None:
            raise MandorlaError(
                f"register({name!r}): {own!r} is no subclass of mandorla.EncoderDecoder or mandorla.DiffusionNetwork,"
                " and no dataset (a class with __len__ and __getitem__, or a function that gives one): mend it"
            )
        home.named[name] = own
        return own

    return add


def import_all(imports: Sequence[str], place: str) -> None:
    """Import files and modules; `place` names the recipe that asks for them.

    Raises MandorlaError if one is missing or breaks.
    """
    for name in imports:
        if name.endswith(SUFFIX) and not Path(name).is_file():
            raise MandorlaError(f"{place}: imports: {name}: no such file; put it there, or write where it is now")
        try:
            if name.endswith(SUFFIX):
                _import_file(Path(name).resolve())
            else:
                import_module(name)
        except ModuleNotFoundError as error:
            raise MandorlaError(
                f"{place}: imports: {name}{_line(error, name)}: {error}; install it, or name its file"
                " (path/to/it.py) instead of the module"
            ) from error
        except (Exception, SystemExit) as error:
            raise MandorlaError(
                f"{place}: imports: {name}{_line(error, name)}: {_kind(error)}{error}; mend it"
            ) from error


def settle(imports: Sequence[str]) -> tuple[str, ...]:
    """Return `imports` with the absolute paths of files, whatever the current folder will be."""
    return tuple(str(Path(name).resolve()) if name.endswith(SUFFIX) else name for name in imports)


def _import_file(path: Path) -> None:
    _find_beside(path.parent)
    changed = path.stat().st_mtime_ns
    if path in _files and _files[path][0] == changed:
        for name, own in _files[path][1]:
            register(name)(own)
        return
    module_name = f"mandorla_imports_{sha256(str(path).encode()).hexdigest()[:16]}"
    spec = spec_from_file_location(module_name, path)
    module = module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    named = [item for register in REGISTERS for item in register.named.items()]
    _files[path] = changed, [(name, own) for name, own in named if own.__module__ == module_name]


def _find_beside(folder: Path) -> None:
    """Let what a file imports be found beside it, before what is called alike beside a file that was imported earlier.

    What was imported from there is forgotten here, and stays with those who have it.
    """
    place = str(folder)
    if _beside[:1] == [place] and place in sys.path:
        return
    earlier = {name for name, module in sys.modules.items() if _home(module) in set(_beside) - {place}}
    alike = {name for name in earlier if (folder / f"{name}.py").is_file() or (folder / name).is_dir()}
    for name in [name for name in sys.modules if name.partition(".")[0] in alike]:
        del sys.modules[name]
    if place in _beside or place not in sys.path:
        sys.path[:] = [other for other in sys.path if other not in _beside]
        _beside[:] = [place, *(other for other in _beside if other != place)]
        sys.path += _beside


def _home(module: ModuleType) -> str:
    """Return the folder in which a module or package lies, empty for one that lies in none."""
    file = Path(getattr(module, "__file__", None) or "")
    return str(file.parent.parent if file.name == "__init__.py" else file.parent) if file.name else ""


def _kind(error: BaseException) -> str:
    return "" if isinstance(error, MandorlaError) else f"{type(error).__name__}: "


def _line(error: BaseException, name: str) -> str:
    """Return `:line` where the file of that name broke."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}" if error.lineno else ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(Path(name).name)]
    return f":{frames[-1].lineno}" if frames and name.endswith(SUFFIX) else ""
