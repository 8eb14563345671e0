"""Steps of peers, one after another when asked: `benchmarks/speed.py` times them in turns with ours.

    python steps.py '{"what": "autoencoder-kl", "threads": 1, "parameters": 900000, "modalities": 2, "size": 64, ...}'

prints what was built as a line of JSON; then, for each line that it reads, takes a step and prints its seconds. Images
are random. Widths are chosen so that the model has about as many parameters as ours.

*autoencoder-kl*: MONAI's, on stacked contrasts (L1 and KL). *unet-cached*, *unet-images*: MONAI's DiffusionModelUNet
on the latents of that autoencoder, which are at hand, or, as in medfusion (Mueller-Franzes et al., "A multimodal
comparison of latent denoising diffusion probabilistic models and generative adversarial networks for medical image
synthesis", 2023, https://doi.org/10.1038/s41598-023-39278-0), encoded anew in every step, in float32. *mmvae+*: that of
MultiVae. *ddim-50*, *ddim-1000*: no training, but tuples drawn by the model of `latent_diffusion.py`, as large as it is
there, with so many steps.
"""

import json
import sys
import time
from collections.abc import Callable

import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler
from task import in_bf16
from torch import Tensor, nn

_LATENT, _GROUPS = 8, 4
_KL_WEIGHT = 1e-6
Step = tuple[nn.Module, Callable[[], Tensor]]


def main() -> None:
    """Build what is asked for, then take steps."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    module, loss = STEPS[asked["what"]](asked)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    print(json.dumps({"parameters": sum(p.numel() for p in module.parameters())}), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        value = loss()
        if value.requires_grad:
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        print(time.perf_counter() - begun, flush=True)


def nearest(build: Callable[[tuple[int, ...]], nn.Module], shape: tuple[int, ...], parameters: int) -> nn.Module:
    """Return the model whose number of parameters is nearest to `parameters`.

    Its levels are `shape` times as wide as the first, but for the last, which makes up for what is left.
    """

    def distance(widths: tuple[int, ...]) -> int:
        with torch.device("meta"):
            return abs(sum(p.numel() for p in build(widths).parameters()) - parameters)

    steps = range(2 * _GROUPS, 200, _GROUPS)
    first = min((tuple(width * times for times in shape) for width in steps), key=distance)
    return build(min(((*first[:-1], last) for last in range(first[-1] // 2, 2 * first[-1], _GROUPS)), key=distance))


def autoencoder(modalities: int, parameters: int) -> AutoencoderKL:
    """Return an autoencoder of stacked contrasts, with latents of a quarter of their sides."""

    def build(widths: tuple[int, ...]) -> AutoencoderKL:
        return AutoencoderKL(
            2,
            modalities,
            modalities,
            channels=widths,
            latent_channels=_LATENT,
            num_res_blocks=1,
            norm_num_groups=_GROUPS,
            attention_levels=(False, False, False),
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )

    return nearest(build, (1, 2, 4), parameters)


def autoencoder_step(asked: dict) -> Step:
    """Return MONAI's autoencoder and its loss on a batch, in bfloat16."""
    model = autoencoder(asked["modalities"], asked["parameters"]).to(memory_format=torch.channels_last)
    x = torch.rand(asked["batch"], asked["modalities"], asked["size"], asked["size"])

    def loss() -> Tensor:
        with in_bf16():
            again, mean, std = model(x)
        mean, variance = mean.float(), std.float().square()
        kl = 0.5 * (mean.square() + variance - variance.log() - 1).flatten(1).sum(1).mean()
        return (again.float() - x).abs().mean() + _KL_WEIGHT * kl

    return model, loss


def unet_step(asked: dict) -> Step:
    """Return MONAI's diffusion model and its loss on latents, encoded in this step or before."""
    from_images = asked["what"] == "unet-images"

    def build(widths: tuple[int, ...]) -> DiffusionModelUNet:
        return DiffusionModelUNet(
            2,
            _LATENT,
            _LATENT,
            channels=widths,
            num_head_channels=[width // 2 for width in widths],
            num_res_blocks=1,
            norm_num_groups=_GROUPS,
            attention_levels=(False, True, True),
        )

    model, schedule = nearest(build, (1, 2, 2), asked["parameters"]), DDPMScheduler(1000)
    encoder = autoencoder(asked["modalities"], asked["autoencoder"]).requires_grad_(False).eval()
    x = torch.rand(asked["batch"], asked["modalities"], asked["size"], asked["size"])
    latents = torch.randn(asked["batch"], _LATENT, asked["size"] // 4, asked["size"] // 4)

    def loss() -> Tensor:
        z = encoder.encode(x)[0] if from_images else latents
        noise, t = torch.randn_like(z), torch.randint(1000, (len(z),))
        with torch.autocast("cpu", torch.bfloat16, enabled=not from_images):
            found = model(schedule.add_noise(z, noise, t), t)
        return (found.float() - noise).square().mean()

    return model, loss


def mmvae_step(asked: dict) -> Step:
    """Return MultiVae's MMVAE+ and its loss on a batch, in bfloat16."""
    from types import SimpleNamespace

    from multivae.data.datasets.base import MultimodalBaseDataset
    from multivae_models import build

    shape = [3, asked["size"], asked["size"]]
    modalities = {f"m{k}": shape for k in range(asked["modalities"])}
    networks = dict.fromkeys(modalities, asked["network"])
    model = build(SimpleNamespace(model="mmvae+", modalities=modalities, networks=networks))
    x = {name: torch.rand(asked["batch"], *shape) for name in modalities}
    return model, lambda: model(MultimodalBaseDataset(data=x)).loss


def ddim_step(asked: dict) -> Step:
    """Return the stacked latent diffusion and tuples drawn from it, given nothing."""
    from latent_diffusion import LatentDiffusion, sample

    num, steps = asked["modalities"], int(asked["what"].removeprefix("ddim-"))
    model = LatentDiffusion(num).eval()
    nothing = torch.zeros(asked["batch"], 2 * num, asked["size"], asked["size"])
    return model, lambda: sample(model, nothing, steps)


STEPS: dict[str, Callable[[dict], Step]] = {
    "autoencoder-kl": autoencoder_step,
    "unet-cached": unet_step,
    "unet-images": unet_step,
    "mmvae+": mmvae_step,
    "ddim-50": ddim_step,
    "ddim-1000": ddim_step,
}

if __name__ == "__main__":
    main()
