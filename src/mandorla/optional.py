"""Libraries that only some of what mandorla does needs, and how to install them."""

from importlib import import_module
from types import ModuleType

from mandorla.errors import MandorlaError


def library(module: str, extra: str) -> ModuleType:
    """Return a library that `mandorla[extra]` brings. Raises `MandorlaError` that says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MandorlaError(how_to_install(module, extra)) from error


def how_to_install(module: str, extra: str) -> str:
    """Return in words how to install the library `module`, which `mandorla[extra]` brings."""
    return f"this needs {module}: pip install -c constraints.txt 'mandorla[{extra}]'"
