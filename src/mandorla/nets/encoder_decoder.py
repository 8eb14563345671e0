"""Encoder and decoder of one modality, for signals, images and volumes alike.

x (B, C, *size) -> features h -> shared code c_m(h) and private posterior q(u_m | h, c);   (c, u_m) -> x.

A network for a modality is one class with four methods: `features`, `encode_shared`, `encode_private`, `decode`.
Register it with `@register("name")` and write `kind: name` in the YAML, or write its import path
(`kind: my_package.nets:MyNet`); keys under `options` reach its constructor. Latents are vectors `(C,)` or
maps `(C, *grid)`; which of them is decided by their shapes alone. One whose c has layers of its own overrides
`shared_of` and `shared_alone` too, and can be distilled (`mandorla.vae.distillation`).
"""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, PositiveInt, Tag
from torch import Tensor, nn
from torch.nn import functional as F

from mandorla.config import Settings
from mandorla.data.dataset import Modality
from mandorla.device import own_random
from mandorla.errors import MandorlaError
from mandorla.latents import Shape
from mandorla.nets.blocks import Residual, batch_norm, conv, initialise, resize, transposed_conv
from mandorla.registry import Register

_OWN = ("convolutional", "perceptron")


class EncoderDecoder(nn.Module):
    """Map one modality to its shared and private code, and back.

    Arguments: `modality` (name, channels, size), `shared` and `private` (shapes of the two codes without batch).
    """

    compiled = ("features", "encode_shared", "encode_private", "decode")  # methods, where asked for

    def __init__(self, modality: Modality, shared: Shape, private: Shape):
        super().__init__()
        self.modality, self.shared, self.private = modality, shared, private

    def fill_up(self, x: Tensor) -> Tensor:
        """Return images `(..., *size)` with what is added to them before cells are read off; by default nothing."""
        return x

    def features(self, x: Tensor) -> Tensor:
        """Return what both codes are read from; x is `(B, C, *size)` in [0, 1]. By default x itself."""
        return x

    def encode_shared(self, h: Tensor) -> Tensor:
        """Return the shared code `(B, *shared)` read from features `h`."""
        raise NotImplementedError

    def shared_of(self, x: Tensor) -> Tensor:
        """Return the shared code `(B, *shared)` read from `x` `(B, C, *size)`, without what u alone is read from."""
        return self.encode_shared(self.features(x))

    def shared_alone(self) -> list[nn.Module]:
        """Return all that reads c, none of which is trained by what reads u; by default there is none such."""
        return []

    def encode_private(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of q(u | h, c), each `(B, *private)`."""
        raise NotImplementedError

    def decode(self, c: Tensor, u: Tensor) -> Tensor:
        """Return the reconstruction `(B, C, *size)` from both codes, meant to lie in [0, 1]."""
        raise NotImplementedError


ENCODER_DECODERS = Register(
    "encoder_decoder.kind",
    "a subclass of mandorla.EncoderDecoder: derive it",
    lambda thing: isinstance(thing, type) and issubclass(thing, EncoderDecoder),
    _OWN,
)


class ConvolutionalConfig(Settings):
    """Strided convolutions down to a small grid, and transposed ones back up."""

    kind: Literal["convolutional"] = "convolutional"
    patch: int = Field(2, ge=1)
    """stride of the first layer, which sees disjoint patches"""
    channels: tuple[PositiveInt, ...] = Field((32, 64, 128), min_length=1)
    """width of each level; each level after the first halves the grid"""
    num_blocks: int = Field(0, ge=0)
    """residual blocks per level, in encoder and decoder"""
    hidden: int = Field(256, ge=1)
    """width of the layers that join the codes"""
    apart: bool = False
    """read c by layers of its own, from the pixels on, which u hears and does not train: what u needs stays out of c"""


class PerceptronConfig(Settings):
    """Fully connected layers: for vectors and short signals."""

    kind: Literal["perceptron"] = "perceptron"
    hidden: tuple[PositiveInt, ...] = Field((256, 256), min_length=1)
    """width of each hidden layer"""
    apart: bool = False
    """read c by layers of its own, which u hears and does not train: what it needs is not in c then"""


class CustomConfig(Settings):
    """A class of the user's own, by registered name or import path `package.module:Class`."""

    kind: str
    """registered name, or import path"""
    options: dict[str, Any] = {}
    """keyword arguments of the constructor, after modality, shared, private"""


def _tag(value: Any) -> str:
    kind = value.get("kind", "convolutional") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if kind in _OWN else "custom"


EncoderDecoderConfig = Annotated[
    Annotated[ConvolutionalConfig, Tag("convolutional")]
    | Annotated[PerceptronConfig, Tag("perceptron")]
    | Annotated[CustomConfig, Tag("custom")],
    Discriminator(_tag),
]


def build_encoder_decoder(
    config: ConvolutionalConfig | PerceptronConfig | CustomConfig, modality: Modality, shared: Shape, private: Shape
) -> EncoderDecoder:
    """Build the network that `config` describes for one modality.

    Raises MandorlaError if a custom class cannot be found, does not accept its options, or gives other shapes than it
    must.
    """
    if isinstance(config, ConvolutionalConfig):
        return Convolutional(modality, shared, private, config)
    if isinstance(config, PerceptronConfig):
        return Perceptron(modality, shared, private, config)
    whose = f"encoder_decoder {config.kind!r} for {modality.name!r}"
    network = ENCODER_DECODERS.build(config.kind, (modality, shared, private), config.options, whose)
    _check_shapes(network, whose)
    return network


@torch.no_grad()
def _check_shapes(network: EncoderDecoder, what: str) -> None:
    """Run two empty samples through a user's network: its mistakes are better known before the training."""
    shared, private, x = ((2, *shape) for shape in (network.shared, network.private, network.modality.shape))
    network.eval()
    method = "features"
    try:
        with own_random():
            h = network.features(torch.zeros(x))
            method = "encode_shared"
            c = network.encode_shared(h)
            _expect({"code": (c, shared)})
            method = "encode_private"
            mean, log_std = network.encode_private(h, c)
            _expect({"mean": (mean, private), "log std": (log_std, private)})
            method = "decode"
            _expect({"reconstruction": (network.decode(c, mean), x)})
    except Exception as error:  # whatever a user's code raises
        reason = str(error) or type(error).__name__
        raise MandorlaError(f"{what}: `{method}` fails on two empty samples ({reason}): mend it") from error
    network.train()


def _expect(results: dict[str, tuple[Tensor, Shape]]) -> None:
    for name, (value, shape) in results.items():
        if value.shape != shape:
            raise ValueError(f"its {name} has shape {tuple(value.shape)}, not {shape}")


class Convolutional(EncoderDecoder):
    """Strided convolutions for any number of spatial dimensions; see `ConvolutionalConfig`.

    The encoder goes down through all levels and, for map latents, up again with skip connections to the coarsest level
    that is fine enough for them: a cell of a map has seen its surroundings. Latents enter the decoder at that level.

    The encoder is batch-normalised: what all images of a modality have in common would otherwise hide, for hundreds of
    steps, the directions in which codes of different modalities agree.

    Sizes that the strides do not divide are padded at their far ends and cropped again. Where c is read `apart`, the
    features are those of u alone and those of c, side by side; c is read from its own, u from both.

    References: U-Net, Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597 (Fig. 1); Feature Pyramid Networks for
    Object Detection, Lin et al., 2017, https://arxiv.org/abs/1612.03144 (Fig. 3).
    """

    def __init__(self, modality: Modality, shared: Shape, private: Shape, config: ConvolutionalConfig):
        super().__init__(modality, shared, private)
        self.dims = dims = len(modality.size)
        if dims not in (1, 2, 3):
            raise MandorlaError(
                f"modality {modality.name!r} has no spatial size: set its encoder_decoder to `kind: perceptron`"
            )
        width, hidden, last = config.channels, config.hidden, len(config.channels) - 1
        self.stride = config.patch * 2**last
        bottom = [math.ceil(size / self.stride) for size in modality.size]
        grids = [tuple(cells * 2 ** (last - level) for cells in bottom) for level in range(len(width))]
        for name, shape in (("shared", shared), ("private", private)):
            if not _holds(grids[0], shape):
                raise MandorlaError(
                    f"{name} map {shape[1:]} of modality {modality.name!r} is finer than its first features {grids[0]}:"
                    f" raise {name}.stride to {config.patch} or lower encoder_decoder.patch"
                )
        level = max(k for k, grid in enumerate(grids) if _holds(grid, shared) and _holds(grid, private))
        self.grid, self.top = grids[level], width[level]

        self.down, self.lift, self.mend = _ways(modality, config, level)
        up = _blocks(dims, self.top, config.num_blocks)
        for k in range(level - 1, -1, -1):
            up += [_up(dims, width[k + 1], width[k]), nn.SiLU(), *_blocks(dims, width[k], config.num_blocks)]
        self.up = nn.Sequential(*up, transposed_conv(dims, width[0], modality.channels, config.patch, config.patch))

        self.read_shared = self._head(shared, shared[0], hidden)
        self.mix_features = conv(dims, self.top * (2 if config.apart else 1), self.top, 1)
        self.mix_shared = nn.Linear(shared[0], self.top) if len(shared) == 1 else conv(dims, shared[0], self.top, 1)
        self.read_private = self._head(private, 2 * private[0], hidden)
        vectors = sum(shape[0] for shape in (shared, private) if len(shape) == 1)
        channels = sum(shape[0] for shape in (shared, private) if len(shape) > 1)
        if vectors:
            self.write_vectors = nn.Sequential(
                nn.Linear(vectors, hidden),
                nn.SiLU(),
                nn.Linear(hidden, self.top * math.prod(self.grid)),
                nn.Unflatten(1, (self.top, *self.grid)),
            )
        if channels:
            self.write_maps = nn.Sequential(conv(dims, channels, self.top, 3, padding=1), nn.SiLU())
        self.join = nn.Sequential(conv(dims, self.top * (bool(vectors) + bool(channels)), self.top, 1), nn.SiLU())
        self.layers_of_shared = nn.ModuleList(_ways(modality, config, level) if config.apart else ())
        private_output = self.read_private[-1] if len(private) == 1 else self.read_private
        initialise(self, outputs=(private_output, self.up[-1]))

    def _head(self, shape: Shape, channels: int, hidden: int) -> nn.Module:
        if len(shape) > 1:
            return conv(self.dims, self.top, channels, 1)
        cells = math.prod(self.grid)
        return nn.Sequential(nn.Flatten(), *_layers(self.top * cells, hidden), nn.Linear(hidden, channels))

    def fill_up(self, x: Tensor) -> Tensor:
        """Return `x` `(..., *size)` with zeros at its far ends, so that the strides divide its sides."""
        pad = [n for size in x.shape[: -self.dims - 1 : -1] for n in (0, -size % self.stride)]
        return F.pad(x, pad) if any(pad) else x

    def features(self, x: Tensor) -> Tensor:
        """Return the features that the codes are read from, `(B, top, *grid)`, or, of c apart, `(B, 2 top, *grid)`."""
        x = self.fill_up(2 * x - 1)
        h = _down_and_up(x, self.down, self.lift, self.mend)
        return torch.cat([h, _down_and_up(x, *self.layers_of_shared)], 1) if self.layers_of_shared else h

    def encode_shared(self, h: Tensor) -> Tensor:
        return self.read_shared(resize(h[:, -self.top :], self.shared[1:]))

    def shared_of(self, x: Tensor) -> Tensor:
        layers = self.layers_of_shared or (self.down, self.lift, self.mend)
        return self.encode_shared(_down_and_up(self.fill_up(2 * x - 1), *layers))

    def shared_alone(self) -> list[nn.Module]:
        return [self.layers_of_shared, self.read_shared] if self.layers_of_shared else []

    def encode_private(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.mix_shared(c)
        mixed = resize(mixed, self.grid) if c.ndim > 2 else mixed.view(*mixed.shape, *[1] * self.dims)
        h = F.silu(self.mix_features(_held(h, self.top)) + mixed)
        return self.read_private(resize(h, self.private[1:])).chunk(2, dim=1)

    def decode(self, c: Tensor, u: Tensor) -> Tensor:
        parts = []
        if vectors := [z for z in (c, u) if z.ndim == 2]:
            parts.append(self.write_vectors(torch.cat(vectors, 1)))
        if maps := [resize(z, self.grid) for z in (c, u) if z.ndim > 2]:
            parts.append(self.write_maps(torch.cat(maps, 1)))
        x = self.up(self.join(torch.cat(parts, 1)))
        return x[(..., *(slice(size) for size in self.modality.size))]


class Perceptron(EncoderDecoder):
    """Fully connected layers on the flattened modality; see `PerceptronConfig`. Latents must be vectors."""

    def __init__(self, modality: Modality, shared: Shape, private: Shape, config: PerceptronConfig):
        super().__init__(modality, shared, private)
        if len(shared) > 1 or len(private) > 1:
            raise MandorlaError(
                f"a perceptron has vector latents only: remove the stride of the latents of {modality.name!r}"
            )
        size, self.top = math.prod(modality.shape), config.hidden[-1]
        self.trunk = _layers(size, *config.hidden)
        self.read_shared = nn.Linear(self.top, shared[0])
        heard = self.top * (2 if config.apart else 1) + shared[0]
        self.read_private = nn.Sequential(*_layers(heard, self.top), nn.Linear(self.top, 2 * private[0]))
        self.write = nn.Sequential(
            *_layers(shared[0] + private[0], *reversed(config.hidden)), nn.Linear(config.hidden[0], size)
        )
        self.trunk_of_shared = _layers(size, *config.hidden) if config.apart else None
        initialise(self, outputs=(self.read_private[-1], self.write[-1]))

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer `(B, hidden[-1])`, of c apart beside that of c, `(B, 2 hidden[-1])`."""
        x = 2 * x.flatten(1) - 1
        h = self.trunk(x)
        return torch.cat([h, self.trunk_of_shared(x)], 1) if self.trunk_of_shared else h

    def encode_shared(self, h: Tensor) -> Tensor:
        return self.read_shared(h[:, -self.top :])

    def shared_of(self, x: Tensor) -> Tensor:
        return self.encode_shared((self.trunk_of_shared or self.trunk)(2 * x.flatten(1) - 1))

    def shared_alone(self) -> list[nn.Module]:
        return [self.trunk_of_shared, self.read_shared] if self.trunk_of_shared else []

    def encode_private(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.read_private(torch.cat([_held(h, self.top), c], 1)).chunk(2, dim=1)

    def decode(self, c: Tensor, u: Tensor) -> Tensor:
        return self.write(torch.cat([c, u], 1)).unflatten(1, self.modality.shape)


def _held(h: Tensor, own: int) -> Tensor:
    """Return features `(B, F, ...)`, those beyond the first `own`, which are of c apart, held: u trains none."""
    return torch.cat([h[:, :own], h[:, own:].detach()], 1) if h.shape[1] > own else h


def _holds(grid: tuple[int, ...], latent: Shape) -> bool:
    """Return whether a grid is at least as fine as that of a latent map; vectors have none."""
    return all(a <= b for a, b in zip(latent[1:], grid, strict=False))


def _blocks(dims: int, channels: int, num: int) -> list[nn.Module]:
    return [Residual(dims, channels) for _ in range(num)]


def _ways(
    modality: Modality, config: ConvolutionalConfig, level: int
) -> tuple[nn.ModuleList, nn.ModuleList, nn.ModuleList]:
    """Build the layers of `_down_and_up`: down through all levels, and from one up to the next until `level`."""
    dims, width = len(modality.size), config.channels
    upwards = range(len(width) - 2, level - 1, -1)

    def normalised(channels: int) -> list[nn.Module]:
        return [*_blocks(dims, channels, config.num_blocks), batch_norm(dims, channels), nn.SiLU()]

    down = nn.ModuleList(
        nn.Sequential(
            conv(dims, width[k - 1], channels, 4, stride=2, padding=1)
            if k
            else conv(dims, modality.channels, channels, config.patch, stride=config.patch),
            *normalised(channels),
        )
        for k, channels in enumerate(width)
    )
    lift = nn.ModuleList(_up(dims, width[k + 1], width[k]) for k in upwards)
    return down, lift, nn.ModuleList(nn.Sequential(*normalised(width[k])) for k in upwards)


def _down_and_up(x: Tensor, down: nn.ModuleList, lift: nn.ModuleList, mend: nn.ModuleList) -> Tensor:
    """Send `x` down through all levels, and up again with what was seen on the way to the level where codes are."""
    levels = []
    for stage in down:
        levels.append(x := stage(x))
    for up, smooth, level in zip(lift, mend, levels[-2::-1], strict=False):
        x = smooth(up(x) + level)
    return x


def _up(dims: int, channels_in: int, channels_out: int) -> nn.Module:
    """Build a layer that doubles the grid."""
    return transposed_conv(dims, channels_in, channels_out, 4, stride=2, padding=1)


def _layers(*widths: int) -> nn.Sequential:
    pairs = zip(widths[:-1], widths[1:], strict=True)
    return nn.Sequential(*(layer for a, b in pairs for layer in (nn.Linear(a, b), nn.SiLU())))
