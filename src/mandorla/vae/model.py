"""Stage 1: an encoder and a decoder per modality around one shared code.

c_m = e_m(x_m), scaled to unit mean square over all its values (the agreement term compares directions);
c_S = the same scaling of mean_{m in S} c_m for any set S of observed modalities, so that order does not matter;
q(u_m | x_m, c_S) = N(mean, std^2);  x_m = d_m(c_S, u_m).
"""

import math
import re
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from mandorla.config import Settings
from mandorla.data.dataset import Modality, all_present, at_rows, rows_of
from mandorla.errors import MandorlaError
from mandorla.latents import SHARED, Encoded, Latents, Layout, Shape, column, to_sphere
from mandorla.nets.encoder_decoder import (
    ConvolutionalConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    build_encoder_decoder,
)

Posterior = tuple[Tensor, Tensor]


class LatentConfig(Settings):
    """Size of one latent component."""

    channels: int = Field(ge=1)
    """length of the vector, or channels of the map"""
    stride: int | None = Field(None, ge=1)
    """pixels per cell of a map; left out: one vector for the whole sample"""

    def shape(self, size: tuple[int, ...]) -> Shape:
        """Return the component's shape for data of spatial `size`."""
        return (self.channels, *(math.ceil(n / self.stride) for n in size if self.stride))


class ModelConfig(Settings):
    """The networks and latents of stage 1."""

    shared: LatentConfig = LatentConfig(channels=16)
    """what all modalities have in common (c)"""
    private: LatentConfig = LatentConfig(channels=16)
    """what each modality has alone (u, v, ...)"""
    private_of: dict[str, LatentConfig] = {}
    """another size for the private part of single modalities, by name"""
    encoder_decoder: EncoderDecoderConfig = ConvolutionalConfig()
    """network of every modality"""
    encoder_decoder_of: dict[str, EncoderDecoderConfig] = {}
    """another network for single modalities, by name"""
    posterior_sees_shared: bool = True
    """read u from x and c; else from x alone, with zeros in the place of c"""


class VAE(nn.Module):
    """Join one `EncoderDecoder` per modality by a shared code.

    Arguments: `config`, and the `modalities` that the data has. Raises MandorlaError if sizes do not fit together.
    """

    def __init__(self, config: ModelConfig, modalities: tuple[Modality, ...]):
        super().__init__()
        _check(config, modalities)
        self.modalities, self.posterior_sees_shared = modalities, config.posterior_sees_shared
        self.shared_held = False
        shared = config.shared.shape(modalities[0].size)
        private = {m.name: config.private_of.get(m.name, config.private).shape(m.size) for m in modalities}
        self.layout = Layout({SHARED: shared} | private)
        self.networks: dict[str, EncoderDecoder] = nn.ModuleDict(
            {
                m.name: build_encoder_decoder(
                    config.encoder_decoder_of.get(m.name, config.encoder_decoder), m, shared, private[m.name]
                )
                for m in modalities
            }
        )
        if config.shared.stride and len(set(self.covered.values())) > 1:
            sizes = ", ".join(f"{name} {size}" for name, size in self.covered.items())
            raise MandorlaError(
                f"networks fill images up so that their strides divide them, here {sizes}: cells of the shared map"
                " would lie elsewhere in each; set a data.size that all strides divide, or networks of one stride"
            )

    @property
    def covered(self) -> dict[str, tuple[int, ...]]:
        """Return the size that the cells of each modality's maps cover: that of the image, filled up by its network."""
        return {
            name: tuple(network.fill_up(torch.zeros(0, *network.modality.size)).shape[1:])  # of no image: in no time
            for name, network in self.networks.items()
        }

    def encode(self, x: dict[str, Tensor], present: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return each modality's features, of the present samples only, and shared codes, zero where it is missing.

        `x[name]` is `(B, C, *size)` in [0, 1], `present[name]` bool `(B,)`; codes `(B, *shape)` have unit mean square.
        """
        features, codes = {}, {}
        for name, rows in present.items():
            network = self.networks[name]
            features[name] = network.features(rows_of(x[name], rows))
            codes[name] = at_rows(to_sphere(network.encode_shared(features[name]).float()), rows)
        return features, codes

    def encode_shared(self, x: dict[str, Tensor], present: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the shared codes alone, as `encode` does, without the work that private ones take."""
        return {
            name: at_rows(to_sphere(self.networks[name].shared_of(rows_of(x[name], rows)).float()), rows)
            for name, rows in present.items()
        }

    def hold_shared(self) -> None:
        """Keep all that c is read by as it is, weights and statistics, through whatever training follows."""
        self.shared_held = True
        for part in self.shared_alone():
            part.requires_grad_(False).eval()

    def shared_alone(self) -> list[nn.Module]:
        """Return the parts of all networks that c is read by and u is not."""
        return [part for network in self.networks.values() for part in network.shared_alone()]

    def train(self, mode: bool = True) -> "VAE":
        """Set the mode of all parts but those that are held, which stay as in use."""
        super().train(mode)
        if self.shared_held:
            for part in self.shared_alone():
                part.eval()
        return self

    def posterior(self, name: str, features: Tensor, c: Tensor) -> Posterior:
        """Return mean and log standard deviation of q(u | x, c) of one modality, each `(B, *shape)`."""
        c = c if self.posterior_sees_shared else torch.zeros_like(c)
        mean, log_std = self.networks[name].encode_private(features, c)
        return mean.float(), log_std.float().clamp(-7, 2)

    def read(self, name: str, x: Tensor) -> Tensor:
        """Return what is read of one modality `(B, C, *size)` alone, c and the mean of u side by side, `(B, n)`."""
        features, c = self.encode({name: x}, all_present({name: x}))
        mean, _ = self.posterior(name, features[name], c[name])
        return torch.cat([c[name].flatten(1), mean.flatten(1)], 1)

    def decode(self, name: str, c: Tensor, u: Tensor) -> Tensor:
        """Return one modality `(B, C, *size)`, meant to lie in [0, 1] (not clamped)."""
        return self.networks[name].decode(c, u).float()


@torch.no_grad()
def encode_batch(
    vae: VAE, x: dict[str, Tensor], present: dict[str, Tensor], pooled: dict[str, Tensor] | None = None
) -> Encoded:
    """Encode `x[name]` `(B, C, *size)` in [0, 1]; `present[name]` is bool `(B,)`, each sample needs one modality.

    c is read from the `pooled` ones, by default from all that are present.
    """
    features, codes = vae.encode(x, present)
    shared = pool(codes, pooled or present)
    mean, std = {}, {}
    for name, rows in present.items():
        mu, log_std = vae.posterior(name, features[name], rows_of(shared, rows))
        mean[name], std[name] = at_rows(mu, rows), at_rows(log_std.exp(), rows)
    return Encoded(Latents(shared, mean), std, present)


def pool(codes: dict[str, Tensor], chosen: dict[str, Tensor]) -> Tensor:
    """Return c_S `(B, *shape)`: the mean of the codes chosen for each sample, scaled again; every sample needs one.

    `chosen[name]` is bool `(B,)`: whether modality `name` belongs to S. Symmetric in the modalities.
    """
    total = sum(code * column(chosen[name], code).to(code) for name, code in codes.items())
    return to_sphere(total)


def random_subsets(present: dict[str, Tensor], uniform: Tensor | None = None) -> dict[str, Tensor]:
    """Draw a non-empty subset of the present modalities for each sample, all subsets alike; bool `(B,)` each.

    Which one follows from `uniform` `(B,)` in [0, 1), by default drawn.
    """
    mask = torch.stack(list(present.values()), 1)
    count = 2 ** mask.sum(1) - 1  # of non-empty subsets; the bits of a number from 1 to that say who is in
    if uniform is None:
        bits = torch.float64 if mask.shape[1] > 20 else torch.float32  # which has 24 of them
        uniform = torch.rand(len(mask), device=mask.device, dtype=bits)
    number = 1 + (uniform * count).long()
    bit = (mask.cumsum(1) - 1).clamp_min(0)
    drawn = mask & (number[:, None] >> bit & 1).bool()
    return dict(zip(present, drawn.unbind(1), strict=True))


def check_names(names: Sequence[str]) -> None:
    """Raise `MandorlaError` for modalities that cannot be called so."""
    for name in names:  # also names of files, of attributes, and of arguments of np.savez
        if (
            name in (SHARED, "present", "file", "allow_pickle")
            or not re.fullmatch(r"[\w -]{1,100}", name)
            or hasattr(nn.ModuleDict(), name)
        ):
            raise MandorlaError(f"a modality cannot be called {name!r}: give it another name in data")
    folded = [name.casefold() for name in names]
    for name in folded:  # names of files, also on disks that do not tell T1 from t1
        if folded.count(name) > 1 or f"{name}_std" in folded:
            raise MandorlaError(
                f"modalities {', '.join(names)}: two of these names would be one file, for {name!r}: rename one in data"
            )


def _check(config: ModelConfig, modalities: tuple[Modality, ...]) -> None:
    names = [m.name for m in modalities]
    if len(names) < 2:
        raise MandorlaError(f"at least two modalities are needed, the data has {len(names)}: {', '.join(names)}")
    check_names(names)
    for key in (*config.private_of, *config.encoder_decoder_of):
        if key not in names:
            raise MandorlaError(f"vae.model names a modality {key!r} that the data does not have: {', '.join(names)}")
    if config.shared.stride and len({m.size for m in modalities}) > 1:
        sizes = ", ".join(f"{m.name} {m.size}" for m in modalities)
        raise MandorlaError(
            f"a shared map needs modalities of one size, here {sizes}: leave vae.model.shared.stride out"
        )
