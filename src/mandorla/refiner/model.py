"""The refiner: what a decoder that answers with a mean leaves out, drawn for each image.

Stage 1 decodes the mean of all images that have the codes c and u_m: it is blurred where they differ. The refiner is a
flow of the detail d_m = (x_m - D_m(c, u_m)) / s_m, with s_m its standard deviation over the training set, given the
codes and what was decoded of them,

    x_m = D_m(c, u_m) + s_m d_m,    d_m = noise moved along v(d, t | D_m(c, u_m), c, u_m) from t = 0 to 1

What is drawn shall show the same. A map says what is where, and the network looks there; of codes that are vectors, the
image x that a velocity points to is led to where those that stage 1 reads of it, E_m, are those that it is drawn for,
w standard deviations of the detail from t = 0 to 1,

    v - w g / rms(g)    with g = d/dx |E_m(x) - (c, u_m)|^2 at x = D_m(c, u_m) + s_m (d_m + (1 - t) v)

Its noise is one more private part of modality m: it is independent of c, of u_m and of the other modalities' noise, and
a modality's detail depends on the others only by way of c.

References: DiffuseVAE, Pandey et al., 2022, https://arxiv.org/abs/2201.00308 (Sec. 3: a refiner given the VAE's image);
Deblurring via Stochastic Refinement, Whang et al., 2022, https://arxiv.org/abs/2112.02475 (Eq. 7: of the difference);
Universal Guidance for Diffusion Models, Bansal et al., 2023, https://arxiv.org/abs/2302.07121 (its forward guidance);
Flow Matching for Generative Modeling, Lipman et al., 2023, https://arxiv.org/abs/2210.02747 (Eq. 23).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mandorla.data.dataset import Modality
from mandorla.diffusion.path import interpolate
from mandorla.diffusion.samplers import Multistep, time_grid
from mandorla.latents import SHARED, Components, Latents, Layout, column
from mandorla.nets.unet import UNet
from mandorla.parallel import gather
from mandorla.refiner.config import RefinerConfig

Read = Callable[[str, Tensor], Tensor]
_LEAST = 1e-12  # size of a slope


class Refiner(nn.Module):
    """Draw the detail of decoded images, in [0, 1]; modalities without pixels have none.

    `layout` is that of the latents, and `covered` the size that the cells of each modality's maps cover, from its first
    pixel on. `scale` holds s_m of each of the modalities `names`.
    """

    def __init__(
        self,
        config: RefinerConfig,
        modalities: Sequence[Modality],
        layout: Layout,
        covered: Mapping[str, tuple[int, ...]],
    ):
        super().__init__()
        with_pixels = [m for m in modalities if m.size]
        self.names, networks = [m.name for m in with_pixels], []
        self.covered = [covered[name] for name in self.names]
        for m in with_pixels:
            codes = [layout.shapes[name] for name in (SHARED, m.name)]
            maps, vectors = (sum(shape[0] for shape in codes if (len(shape) > 1) == is_map) for is_map in (True, False))
            networks.append(UNet(config.network, len(m.size), 2 * m.channels + maps, m.channels, vectors))
        self.networks = nn.ModuleList(networks)
        self.register_buffer("scale", torch.ones(len(self.names)))

    def loss(
        self,
        x: Components,
        latents: Latents,
        decoded: Components,
        present: dict[str, Tensor],
        noise: Components,
        times: dict[str, Tensor],
    ) -> tuple[Tensor, Components]:
        """Return the flow-matching loss of images `x` that were `decoded` of `latents`, and its value per modality.

        Images, and the `noise` at t = 0, are `(B, C, *size)`, a process's own rows of a batch; `present[name]` (bool,
        `(B,)`) says which samples have a modality, `times` `(B,)` at which t each is looked at. The loss is the mean
        over modalities of means over the whole batch.
        """
        errors = {}
        for place, name in enumerate(self.names):
            rows = present[name]
            codes = (latents.shared[rows], latents.private[name][rows])
            detail, start, t = (x[name] - decoded[name])[rows] / self.scale[place], noise[name][rows], times[name][rows]
            velocity = self._velocity(place, interpolate(start, detail, t), decoded[name][rows], codes, t)
            errors[name] = gather((velocity - (detail - start)).square().flatten(1).mean(1))
        total = sum(error.sum() / max(1, len(error)) for error in errors.values()) / len(errors)
        return total, {name: error.mean().detach() for name, error in errors.items() if len(error)}

    def forward(self, *batch: Components | Latents) -> tuple[Tensor, Components]:
        """Return the `loss`: processes that train together meet in a call of the module."""
        return self.loss(*batch)

    @torch.no_grad()
    def refine(
        self, name: str, latents: Latents, decoded: Tensor, noise: Tensor, config: RefinerConfig, read: Read
    ) -> Tensor:
        """Return images of modality `name`, `decoded` of `latents`, with the detail that `noise` becomes.

        All images are `(B, C, *size)`. `config` says how; `read(name, images)` returns what stage 1 reads of images, c
        and u side by side `(B, n)`.
        """
        place, codes = self.names.index(name), (latents.shared, latents.private[name])
        scale, wanted = self.scale[place], torch.cat([z.flatten(1) for z in codes], 1)
        led = torch.cat([torch.full((z[0].numel(),), z.ndim == 2, device=z.device) for z in codes])
        guidance = config.guidance if any(z.ndim == 2 for z in codes) else 0.0

        def velocity(detail: Tensor, t: float) -> Tensor:
            v = self._velocity(place, detail, decoded, codes, detail.new_full((len(detail),), t))
            if not guidance:
                return v
            with torch.enable_grad():
                image = (decoded + scale * (detail + (1 - t) * v)).requires_grad_()
                (slope,) = torch.autograd.grad((read(name, image) - wanted)[:, led].square().sum(), image)
            sizes = slope.flatten(1).square().mean(1).sqrt().clamp_min(_LEAST)
            return v - guidance * slope / column(sizes, slope)

        noise, times = config.temperature * noise, time_grid(max(1, config.steps))
        return decoded + scale * Multistep().integrate(velocity, noise, times)

    def _velocity(
        self, place: int, detail: Tensor, decoded: Tensor, codes: tuple[Tensor, Tensor], times: Tensor
    ) -> Tensor:
        image = (..., *(slice(size) for size in detail.shape[2:]))
        maps = [F.interpolate(z, self.covered[place])[image] for z in codes if z.ndim > 2]
        vectors = [detail.new_zeros(len(detail), 0), *(z for z in codes if z.ndim == 2)]
        return self.networks[place](torch.cat([detail, 2 * decoded - 1, *maps], 1), times, torch.cat(vectors, 1))
