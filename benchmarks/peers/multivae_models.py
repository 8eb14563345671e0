"""Peers with a shared latent space: MMVAE+, DMVAE, MoPoE and MVTCAE of the library MultiVae.

Losses, likelihood, latent sizes, batches and optimiser are those with which the library's authors reproduce PolyMNIST
(DMVAE: theirs for MNIST-SVHN, with the likelihood and latent sizes of MMVAE+); where modalities differ in shape,
likelihoods are rescaled by their sizes, as theirs are for MNIST-SVHN. Encoders and decoders are as large as ours. DMVAE
and MMVAE+ have private codes; MoPoE and MVTCAE have one code for all.

References: Palumbo et al., "MMVAE+", 2023, https://openreview.net/forum?id=sdQGxouELX; Lee and Pavlovic,
"Private-Shared Disentangled Multimodal VAE", 2021, https://arxiv.org/abs/2012.13024; Sutter et al., "Generalized
Multimodal ELBO", 2021, https://arxiv.org/abs/2105.02470; Hwang et al., "Multi-View Representation Learning via Total
Correlation Objective", 2021, https://openreview.net/forum?id=Q0zm_zlCaMa; Senellart et al., "MultiVae", 2025,
https://doi.org/10.21105/joss.07996.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from multivae.data.datasets.base import MultimodalBaseDataset
from multivae.models import DMVAE, MVTCAE, DMVAEConfig, MMVAEPlus, MMVAEPlusConfig, MoPoE, MoPoEConfig, MVTCAEConfig
from multivae.models.base import BaseDecoder, ModelOutput
from multivae.models.nn.base_architectures import BaseMultilatentEncoder
from multivae.samplers import GaussianMixtureSampler, GaussianMixtureSamplerConfig
from task import Images, Stopwatch, Task, in_bf16, in_chunks, read_task, train
from torch import Tensor, nn
from torch.distributions import Laplace
from torch.nn import functional as F


@dataclass(frozen=True)
class Recipe:
    """Say how a model is built and trained: its classes, sizes of codes, batches, what else its authors set."""

    model: type
    config: type
    shared: int
    private: int
    batch_size: int
    amsgrad: bool
    options: dict


RECIPES = {
    "mmvae+": Recipe(
        MMVAEPlus,
        MMVAEPlusConfig,
        32,
        32,
        32,
        True,
        {
            "K": 1,
            "beta": 2.5,
            "prior_and_posterior_dist": "laplace_with_softmax",
            "learn_shared_prior": False,
            "learn_modality_prior": True,
            "loss": "iwae_looser",
        },
    ),
    "dmvae": Recipe(DMVAE, DMVAEConfig, 32, 32, 100, True, {}),
    "mopoe": Recipe(MoPoE, MoPoEConfig, 512, 0, 256, False, {"beta": 2.5}),
    "mvtcae": Recipe(MVTCAE, MVTCAEConfig, 512, 0, 256, False, {"beta": 2.5, "alpha": 5 / 6}),
}


class Encoder(BaseMultilatentEncoder):
    """Read mean and log variance of a shared and, where it has a size, a private code off a modality."""

    def __init__(self, shape: list[int], network: dict, shared: int, private: int):
        super().__init__()
        self.latent_dim, self.style_dim = shared, private
        if network["kind"] == "perceptron":
            self.pad = []
            widths = [math.prod(shape), *network["hidden"], network["hidden"][-1]]  # ours has one more for u
            layers = [nn.Flatten()]
        else:
            channels, cells = network["channels"], grid(shape, network)
            missing = [stride(network) * n - size for n, size in zip(cells, shape[1:], strict=True)]
            self.pad = [n for far_end in reversed(missing) for n in (0, far_end)]
            layers = [nn.Conv2d(shape[0], channels[0], network["patch"], network["patch"])]
            for a, b in pairwise(channels):
                layers += [nn.BatchNorm2d(a), nn.SiLU(), nn.Conv2d(a, b, 4, 2, 1)]
            layers += [nn.BatchNorm2d(channels[-1]), nn.SiLU(), nn.Flatten()]
            widths = [channels[-1] * math.prod(cells), 2 * network["hidden"]]  # ours: two such layers, for two codes
        self.layers = nn.Sequential(*layers, *dense(*widths), nn.Linear(widths[-1], 2 * (shared + private)))

    def forward(self, x: Tensor) -> ModelOutput:
        with in_bf16():
            z = self.layers(F.pad(2 * x - 1, self.pad))
        mean, log_variance, *style = z.float().split([self.latent_dim] * 2 + [self.style_dim] * 2, dim=-1)
        private = {"style_embedding": style[0], "style_log_covariance": style[1]} if self.style_dim else {}
        return ModelOutput(embedding=mean, log_covariance=log_variance, **private)


class Decoder(BaseDecoder):
    """Draw a modality from its codes, side by side, `(..., codes)`."""

    def __init__(self, shape: list[int], network: dict, size: int):
        super().__init__()
        self.size = shape[1:]
        if network["kind"] == "perceptron":
            widths = [size, *reversed(network["hidden"])]
            layers = [*dense(*widths), nn.Linear(widths[-1], math.prod(shape)), nn.Unflatten(1, shape)]
        else:
            channels, cells = network["channels"], grid(shape, network)
            top = channels[-1]
            layers = [*dense(size, network["hidden"]), nn.Linear(network["hidden"], top * math.prod(cells))]
            layers += [nn.Unflatten(1, (top, *cells)), nn.Conv2d(top, top, 1), nn.SiLU()]
            for a, b in pairwise(reversed(channels)):
                layers += [nn.ConvTranspose2d(a, b, 4, 2, 1), nn.SiLU()]
            layers += [nn.ConvTranspose2d(channels[0], shape[0], network["patch"], network["patch"])]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> ModelOutput:
        with in_bf16():
            x = self.layers(z.flatten(0, -2))[(..., *(slice(n) for n in self.size))]
        return ModelOutput(reconstruction=x.float().unflatten(0, z.shape[:-1]))


def grid(shape: list[int], network: dict) -> list[int]:
    """Return the cells of the last layer of a convolutional encoder."""
    return [math.ceil(size / stride(network)) for size in shape[1:]]


def stride(network: dict) -> int:
    """Return how many pixels a side such a cell has."""
    return network["patch"] * 2 ** (len(network["channels"]) - 1)


def dense(*widths: int) -> list[nn.Module]:
    """Return fully connected layers."""
    return [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.SiLU())]


def build(task: Task) -> nn.Module:
    """Build the model that is asked for."""
    recipe, names = RECIPES[task.model], list(task.modalities)
    options = dict(recipe.options)
    if len({tuple(shape) for shape in task.modalities.values()}) > 1:
        options["uses_likelihood_rescaling"] = True
    if recipe.private:
        per_modality = recipe.model is DMVAE
        options["modalities_specific_dim"] = dict.fromkeys(names, recipe.private) if per_modality else recipe.private
    config = recipe.config(
        n_modalities=len(names),
        latent_dim=recipe.shared,
        input_dims={name: tuple(shape) for name, shape in task.modalities.items()},
        decoders_dist=dict.fromkeys(names, "laplace"),
        decoder_dist_params={name: {"scale": 0.75} for name in names},
        **options,
    )
    encoders = {n: Encoder(s, task.networks[n], recipe.shared, recipe.private) for n, s in task.modalities.items()}
    decoders = {n: Decoder(s, task.networks[n], recipe.shared + recipe.private) for n, s in task.modalities.items()}
    return recipe.model(config, encoders=encoders, decoders=decoders)


def draw(model: nn.Module, num: int, size: int) -> Tensor:
    """Return `num` codes from the prior with which the model generates, `(num, size)`."""
    return Laplace(0.0, 1.0).sample((num, size)) if isinstance(model, MMVAEPlus) else torch.randn(num, size)


def main() -> None:
    """Train and answer."""
    task = read_task()
    recipe, model = RECIPES[task.model], build(task)
    watch = Stopwatch()
    steps = train(
        task,
        model,
        lambda x: model(MultimodalBaseDataset(data=x)).loss,
        recipe.batch_size,
        1e-3,
        amsgrad=recipe.amsgrad,
    )
    spent = watch.read()
    answer(task, model, recipe.private)
    how = f"batches of {recipe.batch_size}, codes of {recipe.shared}" + (f" + {recipe.private}" * bool(recipe.private))
    task.report(spent, steps, model, how)


@torch.no_grad()
def answer(task: Task, model: nn.Module, private: int) -> None:
    """Write codes, what is decoded from them, and generated tuples."""

    def read(x: Tensor, name: str, key: str) -> Tensor:
        return in_chunks(lambda part: model.encoders[name](part)[key], x)

    def decode(name: str, *codes: Tensor) -> Tensor:
        images = in_chunks(lambda *z: model.decoders[name](torch.cat(z, -1)).reconstruction, *codes)
        return images.clamp(0, 1)

    codes: dict[str, Images] = {}
    for part in ("known", "test"):
        images = task.images(part)
        for kind, key in {"shared": "embedding", **({"private": "style_embedding"} if private else {})}.items():
            codes[f"{part}/{kind}"] = {name: read(x, name, key) for name, x in images.items()}
    for place, of_name in codes.items():
        task.write(place, of_name)
    for source, shared in codes["test/shared"].items():
        own = {name: draw(model, len(shared), private) for name in task.modalities}
        task.write(f"given/{source}", {name: decode(name, shared, u)[None] for name, u in own.items()})
    if private:
        donor = torch.from_numpy(task.donor())
        swapped = {n: decode(n, c, codes["test/private"][n][donor]) for n, c in codes["test/shared"].items()}
        task.write("swapped", swapped)
    num = task.num_generated
    shared = draw(model, num, model.latent_dim)
    task.write("joint", {name: decode(name, shared, draw(model, num, private)) for name in task.modalities})
    mixture = GaussianMixtureSampler(model, GaussianMixtureSamplerConfig(n_components=10))
    mixture.fit(MultimodalBaseDataset(data=task.images("known")))
    drawn = mixture.sample(num)
    own = drawn.modalities_z if private else dict.fromkeys(task.modalities, torch.empty(num, 0))
    task.write("joint mixture", {name: decode(name, drawn.z, u) for name, u in own.items()})


if __name__ == "__main__":
    main()
