"""Stage 2: the flow over whitened latent components, trained by `loss`, used by `generate`."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mandorla.diffusion.config import DiffusionConfig
from mandorla.diffusion.path import draw_times, flow_loss, interpolate
from mandorla.diffusion.samplers import SAMPLERS
from mandorla.errors import MandorlaError
from mandorla.latents import SHARED, Components, Layout
from mandorla.nets.transformer import ComponentTransformer


class Diffusion(nn.Module):
    """Model the components of `layout` together, or a part of them given others.

    In mode "private" the shared component is no part of the model; `self.layout` holds what is.
    """

    def __init__(self, config: DiffusionConfig, layout: Layout):
        super().__init__()
        self.config = config
        left_out = {SHARED} if config.mode == "private" else set()
        self.layout = Layout({name: shape for name, shape in layout.shapes.items() if name not in left_out})
        self.network = ComponentTransformer(config.network, self.layout)

    def loss(self, data: Components, given: dict[str, Tensor]) -> tuple[Tensor, Components]:
        """Return the flow-matching loss on whitened `data`, and its value per component.

        `given[name]` is bool `(B,)`: components that a sample lacks carry no loss and give no information.
        """
        names = list(self.layout.shapes)
        data = {name: data[name] for name in names}
        noise = {name: torch.randn_like(z) for name, z in data.items()}
        times, travels = draw_times(names, given, self.config.joint_share, self.config.mode, self.config.time_std)
        moved = {
            name: interpolate(noise[name], data[name], t) for (name, t) in zip(names, times.unbind(1), strict=True)
        }
        return flow_loss(self.network(moved, times), noise, data, travels)

    @torch.no_grad()
    def generate(self, noise: Components, known: Components, wanted: list[str], steps: int, sampler: str) -> Components:
        """Return the `wanted` components, whitened, given the `known` ones; all others stay unknown.

        `noise` holds every component of the layout at t = 0, `(B, *shape)`: it decides what is drawn.
        Raises MandorlaError if the mode of this model does not answer the question.
        """
        return self._travel(noise, known, wanted, steps, sampler, 0.0, 1.0)

    @torch.no_grad()
    def abduct(self, data: Components, noise: Components, known: Components, steps: int, sampler: str) -> Components:
        """Return the noise from which `generate` makes `data` (whitened), given the `known` components.

        The flow is followed backwards: as far as it is right, what is found is independent of what is known. `noise`
        stands for the components that are neither.
        """
        return self._travel(noise | data, known, list(data), steps, sampler, 1.0, 0.0)

    def _travel(
        self,
        noise: Components,
        known: Components,
        wanted: list[str],
        steps: int,
        sampler: str,
        start: float,
        stop: float,
    ) -> Components:
        self._check(known, wanted)
        known = {name: z for name, z in known.items() if name in self.layout.shapes}
        travelling = Layout({name: self.layout.shapes[name] for name in wanted})
        first = next(iter(noise.values()))

        def velocity(x: Tensor, t: float) -> Tensor:
            state = noise | known | travelling.split(x)
            row = [1.0 if name in known else t if name in wanted else 0.0 for name in self.layout.shapes]
            times = torch.tensor(row, device=first.device).expand(len(first), -1)
            return travelling.join(self.network(state, times))

        return travelling.split(SAMPLERS[sampler].integrate(velocity, travelling.join(noise), steps, start, stop))

    def _check(self, known: Components, wanted: list[str]) -> None:
        mode = self.config.mode
        if SHARED in wanted and mode != "joint":
            raise MandorlaError(
                f"this stage 2 was trained in mode {mode!r}, which does not generate shared parts: use mode joint"
            )
        if mode == "conditional" and SHARED not in known:
            raise MandorlaError(
                "this stage 2 was trained in mode 'conditional': it needs the shared part as condition: give it"
            )


def sample_noise(layout: Layout, seed: int, keys: Sequence[tuple[int, ...]]) -> Components:
    """Return standard normal components, one row for each of `keys`; a row depends on (seed, its key) alone.

    Keys of different length never give the same noise.
    """
    size = sum(torch.Size(shape).numel() for shape in layout.shapes.values())
    rows = [np.random.default_rng((seed, len(key), *key)).standard_normal(size, np.float32) for key in keys]
    return layout.split(torch.from_numpy(np.stack(rows)))
