"""A recipe's `imports`: the user's own Python files and modules, imported wherever the recipe is read.

They register networks (`mandorla.register`). A file is run once, and again when it has changed. What it registered
counts anew with every reading, so that two runs may bring different networks of one name.
"""

import sys
import traceback
from collections.abc import Sequence
from hashlib import sha256
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from mandorla.errors import MandorlaError
from mandorla.nets.encoder_decoder import EncoderDecoder, register, registered

SUFFIX = ".py"  # of files; everything else is the name of a module
_beside: list[str] = []  # folders of files that were imported, the latest first
_files: dict[Path, tuple[int, dict[str, type[EncoderDecoder]]]] = {}  # time of change, what was registered


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
        for name, network in _files[path][1].items():
            register(name)(network)
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
    networks = {name: network for name, network in registered().items() if network.__module__ == module_name}
    _files[path] = changed, networks


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
