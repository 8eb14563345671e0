"""Shared and private parts of paired multi-modal data: a two-stage latent diffusion model.

Names are imported on first use, so that `import mandorla` alone stays fast and does not import torch.
"""

from importlib import import_module

from mandorla.errors import MandorlaError, MandorlaWarning

TYPE_CHECKING = False  # type checkers know the name; importing `typing` would take longer than all of this
if TYPE_CHECKING:
    from mandorla.imports import register
    from mandorla.latents import Latents
    from mandorla.model import Mandorla, load
    from mandorla.nets.diffusion_network import DiffusionNetwork
    from mandorla.nets.encoder_decoder import EncoderDecoder

__version__ = "0.1.0"
__all__ = [
    "DiffusionNetwork",
    "EncoderDecoder",
    "Latents",
    "Mandorla",
    "MandorlaError",
    "MandorlaWarning",
    "__version__",
    "load",
    "register",
]

_HOMES = {
    "DiffusionNetwork": "mandorla.nets.diffusion_network",
    "EncoderDecoder": "mandorla.nets.encoder_decoder",
    "Latents": "mandorla.latents",
    "Mandorla": "mandorla.model",
    "load": "mandorla.model",
    "register": "mandorla.imports",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
