"""The refiner: what a decoder that answers with a mean leaves out, drawn for each image.

Stage 1 decodes the mean of all images that have the codes c and u_m: it is blurred where they differ. The refiner is a
flow of the detail d_m = (x_m - D_m(c, u_m)) / s_m, with s_m its standard deviation over the training set, given the
codes and what was decoded of them,

    x_m = D_m(c, u_m) + s_m d_m,    d_m = noise moved along v(d, t | D_m(c, u_m), c, u_m) from t = 0 to 1

While it is trained, stage 1 reads codes E_m of the image that each velocity points to, and they shall be those of the
real image, so that what is drawn shows the same,

    L_m = |v - (d_m - noise)|^2 + w |E_m(D_m + s_m (d_m(t) + (1 - t) v)) - E_m(x_m)|^2

Its noise is one more private part of modality m: it is independent of c, of u_m and of the other modalities' noise, and
a modality's detail depends on the others only by way of c.

References: DiffuseVAE, Pandey et al., 2022, https://arxiv.org/abs/2201.00308 (Sec. 3: a refiner given the VAE's image);
Deblurring via Stochastic Refinement, Whang et al., 2022, https://arxiv.org/abs/2112.02475 (Eq. 7: of the difference);
Perceptual Losses, Johnson et al., 2016, https://arxiv.org/abs/1603.08155 (Eq. 2: a frozen network compares images);
Flow Matching for Generative Modeling, Lipman et al., 2023, https://arxiv.org/abs/2210.02747 (Eq. 23).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mandorla.data.dataset import Modality
from mandorla.diffusion.path import interpolate
from mandorla.diffusion.samplers import Multistep, time_grid
from mandorla.latents import SHARED, Components, Latents, Layout
from mandorla.nets.unet import UNet
from mandorla.parallel import gather
from mandorla.refiner.config import RefinerConfig

Read = Callable[[str, Tensor], Tensor]


class Refiner(nn.Module):
    """Draw the detail of decoded images, in [0, 1]; modalities without pixels have none.

    `layout` is that of the latents. `scale` holds s_m of each of the modalities `names`.
    """

    def __init__(self, config: RefinerConfig, modalities: Sequence[Modality], layout: Layout):
        super().__init__()
        with_pixels = [m for m in modalities if m.size]
        self.names, networks = [m.name for m in with_pixels], []
        for m in with_pixels:
            codes = [layout.shapes[name] for name in (SHARED, m.name)]
            maps, vectors = (sum(shape[0] for shape in codes if (len(shape) > 1) == is_map) for is_map in (True, False))
            networks.append(UNet(config.network, len(m.size), 2 * m.channels + maps, m.channels, vectors))
        self.networks = nn.ModuleList(networks)
        self.codes_weight = config.codes_weight
        self.register_buffer("scale", torch.ones(len(self.names)))

    def loss(
        self,
        x: Components,
        latents: Latents,
        decoded: Components,
        present: dict[str, Tensor],
        noise: Components,
        times: dict[str, Tensor],
        read: Read,
    ) -> tuple[Tensor, Components]:
        """Return the loss of images `x` that were `decoded` of `latents`, and per modality its terms: flow, codes.

        Images, and the `noise` at t = 0, are `(B, C, *size)`, a process's own rows of a batch; `present[name]` (bool,
        `(B,)`) says which samples have a modality, `times` `(B,)` at which t each is looked at. `read(name, images)`
        returns the codes of images, `(B, n)`. The loss is the mean over modalities of means over the whole batch.
        """
        errors, apart = {}, {}
        for place, name in enumerate(self.names):
            rows, scale = present[name], self.scale[place]
            real, mean, start, t = (of[name][rows] for of in (x, decoded, noise, times))
            detail, codes = (real - mean) / scale, (latents.shared[rows], latents.private[name][rows])
            moving = interpolate(start, detail, t)
            velocity = self._velocity(place, moving, mean, codes, t)
            errors[name] = gather((velocity - (detail - start)).square().flatten(1).mean(1))
            if self.codes_weight:
                image = mean + scale * interpolate(moving + velocity, moving, t)  # where the velocity points to
                apart[f"codes of {name}"] = gather((read(name, image) - read(name, real)).square().mean(1))
        total = _mean(errors) + self.codes_weight * _mean(apart)
        return total, {name: error.mean().detach() for name, error in (errors | apart).items() if len(error)}

    def forward(self, *batch: Components | Latents | Read) -> tuple[Tensor, Components]:
        """Return the `loss`: processes that train together meet in a call of the module."""
        return self.loss(*batch)

    @torch.no_grad()
    def refine(self, name: str, latents: Latents, decoded: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Return images of modality `name`, `decoded` of `latents`, with the detail that `noise` becomes.

        All images are `(B, C, *size)`.
        """
        place, codes = self.names.index(name), (latents.shared, latents.private[name])

        def velocity(detail: Tensor, t: float) -> Tensor:
            return self._velocity(place, detail, decoded, codes, detail.new_full((len(detail),), t))

        return decoded + self.scale[place] * Multistep().integrate(velocity, noise, time_grid(steps))

    def _velocity(
        self, place: int, detail: Tensor, decoded: Tensor, codes: tuple[Tensor, Tensor], times: Tensor
    ) -> Tensor:
        maps = [F.interpolate(z, detail.shape[2:]) for z in codes if z.ndim > 2]
        vectors = [detail.new_zeros(len(detail), 0), *(z for z in codes if z.ndim == 2)]
        return self.networks[place](torch.cat([detail, 2 * decoded - 1, *maps], 1), times, torch.cat(vectors, 1))


def _mean(errors: Components) -> Tensor | float:
    """Return the mean over modalities of means over their samples; of a modality without samples nothing."""
    return sum(error.sum() / max(1, len(error)) for error in errors.values()) / max(1, len(errors))
