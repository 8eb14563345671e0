"""A peer for generation and translation: latent diffusion on stacked contrasts, without a split, built from MONAI.

An autoencoder takes all contrasts, or views in colour, side by side as channels (L1 and KL: MONAI's tutorial without
its perceptual and adversarial terms, which need weights of others, or more minutes); half of the minutes. A U-Net then
learns the noise in its latents, scaled to unit variance. It also sees the contrasts that are given, pixels as channels
on the grid of the latents, and which they are; for one sample in seven of three contrasts none are, so that it
generates tuples too. Samples take 50 steps of DDIM.

References: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
https://arxiv.org/abs/2112.10752; Pinaya et al., "Generative AI for Medical Imaging: extending the MONAI Framework",
2023, https://arxiv.org/abs/2307.15208; Song et al., "Denoising Diffusion Implicit Models", 2021,
https://arxiv.org/abs/2010.02502.
"""

from functools import partial

import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from task import Images, Stopwatch, Task, in_bf16, in_chunks, read_task, to_images, train
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle
from unet import draw_given, mask_of, masked

_LATENT, _STRIDE = 8, 4
_KL_WEIGHT = 1e-6
_NOISE = {"num_train_timesteps": 1000, "schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195}
_STEPS = 50
_BATCH_SIZES = 16, 32  # of the two stages, as ours
_LEARNING_RATES = 1e-3, 1e-3
_FIRST = 0.5  # share of the minutes for the autoencoder


class LatentDiffusion(nn.Module):
    """Hold both stages for contrasts of one size that have so many `channels` together."""

    def __init__(self, channels: int):
        super().__init__()
        widths = {"num_res_blocks": 1, "norm_num_groups": 16, "attention_levels": (False, False, False)}
        self.autoencoder = AutoencoderKL(
            2,
            channels,
            channels,
            channels=(32, 64, 128),
            latent_channels=_LATENT,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
            **widths,
        )
        self.unet = DiffusionModelUNet(
            2,
            _LATENT + 2 * channels * _STRIDE**2,
            _LATENT,
            channels=(96, 128, 128),
            num_head_channels=32,
            **widths | {"attention_levels": (False, True, True)},
        )
        self.register_buffer("scale", torch.ones(()))

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of stacked contrasts `(B, channels, *size)`, of about unit variance."""
        with in_bf16():
            mean, _ = self.autoencoder.encode(x)
        return mean.float() * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Return stacked contrasts in [0, 1]."""
        with in_bf16():
            x = self.autoencoder.decode(z / self.scale)
        return x.float().clamp(0, 1)

    def noise(self, z: Tensor, t: Tensor, given: Tensor) -> Tensor:
        """Return the noise in latents `z` at step `t` `(B,)`; `given` is what `masked` gives."""
        with in_bf16():
            return self.unet(torch.cat([z, pixel_unshuffle(given, _STRIDE)], 1), t).float()


def main() -> None:
    """Train both stages and answer."""
    task = read_task()
    names, channels = list(task.modalities), channels_of(task)
    model, schedule = LatentDiffusion(sum(channels)), DDPMScheduler(**_NOISE)

    def stack(images: Images) -> Tensor:
        return torch.cat([images[name] for name in names], 1)

    def autoencoder_loss(images: Images) -> Tensor:
        x = stack(images)
        with in_bf16():
            again, mean, std = model.autoencoder(x)
        mean, variance = mean.float(), std.float().square()
        kl = 0.5 * (mean.square() + variance - variance.log() - 1).flatten(1).sum(1).mean()
        return (again.float() - x).abs().mean() + _KL_WEIGHT * kl

    def diffusion_loss(images: Images) -> Tensor:
        x = stack(images)
        with torch.no_grad():
            z = model.encode(x)
        noise, t = torch.randn_like(z), torch.randint(schedule.num_train_timesteps, (len(z),))
        given = masked(x, repeated(draw_given(len(x), names, empty=True), channels))
        return (model.noise(schedule.add_noise(z, noise, t), t, given) - noise).square().mean()

    watch = Stopwatch()
    steps = train(task, model.autoencoder, autoencoder_loss, _BATCH_SIZES[0], _LEARNING_RATES[0], _FIRST)
    some = stack(to_images(task.arrays("train"), slice(256)))
    model.scale = 1 / in_chunks(model.encode, some).std()
    steps += train(task, model.unet, diffusion_loss, _BATCH_SIZES[1], _LEARNING_RATES[1], 1 - _FIRST)
    spent = watch.read()
    answer(task, model)
    how = f"batches of {_BATCH_SIZES[0]} and {_BATCH_SIZES[1]}, {_STEPS} steps of DDIM"
    task.report(spent, steps, model, how)


@torch.no_grad()
def sample(model: LatentDiffusion, given: Tensor, steps: int = _STEPS) -> Tensor:
    """Return one draw for each row of what `masked` gives, `(B, channels, *size)`."""
    scheduler = DDIMScheduler(clip_sample=False, **_NOISE)
    scheduler.set_timesteps(steps)
    z = torch.randn(len(given), _LATENT, *(size // _STRIDE for size in given.shape[2:]))
    for t in scheduler.timesteps:
        z, _ = scheduler.step(model.noise(z, t.expand(len(z)), given), t, z)
    return model.decode(z)


def channels_of(task: Task) -> list[int]:
    """Return how many channels each contrast has."""
    return [shape[0] for shape in task.modalities.values()]


def repeated(given: Tensor, channels: list[int]) -> Tensor:
    """Return which channels are given, bool `(B, channels)`, where `given` `(B, M)` says which contrasts are."""
    return given.repeat_interleave(torch.tensor(channels), 1)


def answer(task: Task, model: LatentDiffusion) -> None:
    """Write samples for all routes or, where samples have a class, for each contrast given alone; and tuples."""
    names, channels, draw = list(task.modalities), channels_of(task), partial(sample, model)
    classes = not task.routes
    x = torch.cat(list(task.images("test" if classes else "translated").values()), 1)
    routes = [([name], [other for other in names if other != name]) for name in names] if classes else task.routes
    num = 1 if classes else task.num_samples

    def tuples(given: list[str], x: Tensor) -> Images:
        known = masked(x, repeated(mask_of(given, names, len(x)), channels))
        return dict(zip(names, in_chunks(draw, known).split(channels, 1), strict=True))

    for given, wanted in routes:
        drawn = tuples(given, x.repeat(num, 1, 1, 1))
        task.write(f"given/{'+'.join(given)}", {name: drawn[name].unflatten(0, (num, -1)) for name in wanted})
    task.write("joint", tuples([], torch.zeros(task.num_generated, *x.shape[1:])))


if __name__ == "__main__":
    main()
