"""Stage 2: the flow over whitened latent components, trained by `loss`, used by `generate`."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mandorla.diffusion.config import DiffusionConfig
from mandorla.diffusion.labels import LabelScale, forget_half
from mandorla.diffusion.path import draw_regions, draw_times, flow_loss, interpolate
from mandorla.diffusion.samplers import SAMPLERS, Heun, SamplingConfig, Velocity, time_grid
from mandorla.errors import MandorlaError
from mandorla.latents import SHARED, Components, Layout
from mandorla.nets.diffusion_network import DiffusionNetwork, build_own_network
from mandorla.nets.transformer import ComponentTransformer, TransformerConfig
from mandorla.parallel import share


class Diffusion(nn.Module):
    """Model the components of `layout` together, or a part of them given others.

    In mode "private" the shared component is no part of the model; `self.layout` holds what is. `labels` says how the
    labels become numbers on which everything may be conditioned.
    """

    def __init__(self, config: DiffusionConfig, layout: Layout, labels: Mapping[str, LabelScale] | None = None):
        super().__init__()
        self.config, self.labels = config, dict(labels or {})
        left_out = {SHARED} if config.mode == "private" else set()
        self.layout = Layout({name: shape for name, shape in layout.shapes.items() if name not in left_out})
        sizes = {name: scale.size for name, scale in self.labels.items()}
        if isinstance(config.network, TransformerConfig):
            self.network: DiffusionNetwork = ComponentTransformer(config.network, self.layout, sizes)
        else:
            self.network = build_own_network(config.network, self.layout, sizes)
        self.weak: DiffusionNetwork | None = None  # the same network, trained for less long

    def loss(
        self, data: Components, given: dict[str, Tensor], labels: Components | None = None
    ) -> tuple[Tensor, Components]:
        """Return the flow-matching loss on whitened `data`, and its value per component.

        `given[name]` is bool `(B,)`: components that a sample lacks carry no loss and give no information. `labels` are
        those of the network; each is forgotten for half of the samples.
        """
        names = list(self.layout.shapes)
        data = {name: data[name] for name in names}
        noise = {name: torch.randn_like(z) for name, z in data.items()}
        config = self.config
        times, travels = draw_times(names, given, config.joint_share, config.mode, config.time_std, config.time_shift)
        moved = {
            name: interpolate(noise[name], data[name], t) for (name, t) in zip(names, times.unbind(1), strict=True)
        }
        held = draw_regions(data, travels, config.region_share)
        held = {name: self.network.whole_tokens(name, cells) for name, cells in held.items()}
        moved |= {name: torch.where(cells[:, None], data[name], moved[name]) for name, cells in held.items()}
        own = share(len(times))
        noise, data, held, moved, labels = (
            {name: z[own] for name, z in part.items()} for part in (noise, data, held, moved, forget_half(labels or {}))
        )
        total, means = flow_loss(self.network(moved, times[own], held, labels), noise, data, travels[own], held)
        if config.mode == "conditional":
            del means[SHARED]  # which never travels
        return total, means

    def forward(self, *batch: Components) -> tuple[Tensor, Components]:
        """Return the `loss`: processes that train together meet in a call of the module."""
        return self.loss(*batch)

    @torch.no_grad()
    def generate(
        self,
        noise: Components,
        known: Components,
        wanted: list[str],
        sampling: SamplingConfig,
        *,
        fresh: Callable[[int], Components] | None = None,
        begin: Components | None = None,
        start: float = 0.0,
        held: Components | None = None,
        labels: Components | None = None,
    ) -> Components:
        """Return the `wanted` components, whitened, given the `known` ones; all others stay unknown.

        - `noise` holds every component of the layout at t = 0, `(B, *shape)`: it decides what is drawn; `fresh(k)`
          does for step k of a sampler that asks for it
        - `begin`: values of the wanted components, from which the way begins at time `start`, as noisy as data are then
        - `held[name]`: bool `(B, *grid)`, cells of maps that stay as in `begin` and are known; a token is held if all
          its cells are
        - `labels[name]`: `(B, size)`, those of the network

        Raises MandorlaError if the mode of this model does not answer the question.

        References: SDEdit, Meng et al., 2022, https://arxiv.org/abs/2108.01073 (Alg. 1: `start`).
        """
        travelling, velocity = self._way(wanted, noise, known, sampling, held, labels)
        held = {name: self.network.whole_tokens(name, cells) for name, cells in (held or {}).items()}
        x = travelling.join(noise)
        if begin is not None:
            last = travelling.join(begin)
            x = (1 - start) * x + start * last
        sampler, times = SAMPLERS[sampling.sampler](), time_grid(sampling.steps, start, 1.0, sampling.shift)
        step_noise = fresh and (lambda step: travelling.join(fresh(step)))
        # around all steps, so that weights are rounded once
        with torch.autocast(x.device.type, torch.bfloat16, enabled=sampling.precision == "bf16"):
            if not held:
                return travelling.split(sampler.integrate(velocity, x, times, step_noise))
            kept = travelling.join({n: _everywhere(held.get(n), z) for n, z in travelling.split(x).items()})
            x = sampler.integrate(lambda x, t: velocity(x.where(~kept, last), t), x, times, step_noise)
        return travelling.split(x.where(~kept, last))

    @torch.no_grad()
    def abduct(self, data: Components, noise: Components, known: Components, steps: int) -> Components:
        """Return the noise from which `generate` makes `data` (whitened), given the `known` components.

        The flow is followed backwards, by Heun's steps: as far as it is right, what is found is independent of what is
        known. `noise` stands for the components that are neither.
        """
        travelling, velocity = self._way(data, noise, known)
        return travelling.split(Heun().integrate(velocity, travelling.join(data), time_grid(steps, 1.0, 0.0)))

    @torch.no_grad()
    def log_likelihood(
        self,
        data: Components,
        noise: Components,
        known: Components,
        steps: int,
        probes: Tensor | None = None,
        labels: Components | None = None,
    ) -> Tensor:
        """Return log p(data | known, labels) of whitened components by the probability flow, in nats, `(B,)`.

        log p(x_1) = log N(x_0; 0, I) - integral of div v along the way of x. The divergence is exact, at a cost that
        grows with the number of values; or estimated without bias by `probes` (K, D) of random signs.

        References: Neural Ordinary Differential Equations, Chen et al., 2018, https://arxiv.org/abs/1806.07366 (Eq. 8);
        FFJORD, Grathwohl et al., 2019, https://arxiv.org/abs/1810.01367 (Eq. 7: probes).
        """
        travelling, velocity = self._way(data, noise, known, labels=labels)
        x = travelling.join(data)
        ways = torch.eye(x.shape[1]).to(x) if probes is None else probes.to(x)
        weight = 1.0 if probes is None else 1 / len(ways)

        def with_divergence(state: Tensor, t: float) -> Tensor:
            with torch.enable_grad():
                x = state[:, :-1].requires_grad_()
                v = velocity(x, t)
                slopes = [torch.autograd.grad(v, x, way.expand_as(v), retain_graph=True)[0] @ way for way in ways]
            return torch.cat([v.detach(), weight * sum(slopes)[:, None]], 1)

        state = torch.cat([x, x.new_zeros(len(x), 1)], 1)
        state = Heun().integrate(with_divergence, state, time_grid(steps, 1.0, 0.0))
        first, grown = state[:, :-1], -state[:, -1]
        return -0.5 * (first.square() + math.log(2 * math.pi)).sum(1) - grown

    def _way(
        self,
        names: Iterable[str],
        noise: Components,
        known: Components,
        sampling: SamplingConfig | None = None,
        held: Components | None = None,
        labels: Components | None = None,
    ) -> tuple[Layout, Velocity]:
        """Return the layout and the velocity of the components `names`, joined, given what is known or `held` of them.

        What neither travels nor is known stays noise.

        References: Classifier-Free Diffusion Guidance, Ho and Salimans, 2022, https://arxiv.org/abs/2207.12598 (Eq. 6);
        Guiding a Diffusion Model with a Bad Version of Itself, Karras et al., 2024, https://arxiv.org/abs/2406.02507
        (Eq. 4: autoguidance); Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
        Diffusion Models, Kynkäänniemi et al., 2024, https://arxiv.org/abs/2404.07724 (not near noise).
        """
        sampling = sampling or SamplingConfig()
        guidance, autoguidance = sampling.guidance, sampling.autoguidance
        travelling = Layout({name: self.layout.shapes[name] for name in names if name in self.layout.shapes})
        self._check(known, list(names), guidance, autoguidance)
        known = {name: z for name, z in known.items() if name in self.layout.shapes}
        always = known if self.config.mode == "conditional" else {}  # there labels alone can be taken away
        first = next(iter(noise.values()))
        unknown = {name: first.new_full((len(first), label.size), torch.nan) for name, label in self.labels.items()}

        def learned(network: nn.Module, x: Tensor, t: float, known: Components, labels: Components | None) -> Tensor:
            state = noise | known | travelling.split(x)
            row = [1.0 if name in known else t if name in travelling.shapes else 0.0 for name in self.layout.shapes]
            times = torch.tensor([row], device=x.device)  # one for all samples: what follows from it is computed once
            times = times.expand(len(x), -1) if held or not network.common_times else times
            return travelling.join(network(state, times, held or {}, unknown | (labels or {}))).to(x)

        def velocity(x: Tensor, t: float) -> Tensor:
            guided = v = learned(self.network, x, t, known, labels)
            if not sampling.guided_at(t):
                return v
            if guidance != 1 and (labels or known and self.config.mode != "conditional"):
                guided = guided + (guidance - 1) * (v - learned(self.network, x, t, always, None))
            if autoguidance != 1:
                guided = guided + (autoguidance - 1) * (v - learned(self.weak, x, t, known, labels))
            return guided

        return travelling, velocity

    def _check(self, known: Components, wanted: list[str], guidance: float, autoguidance: float) -> None:
        mode = self.config.mode
        if autoguidance != 1 and self.weak is None:
            raise MandorlaError(
                "this stage 2 has no weaker network to be led away from: train it with diffusion.weak_share=0.25, or"
                " leave sampling.autoguidance at 1"
            )
        if mode == "conditional" and guidance != 1 and not self.labels:
            raise MandorlaError(
                "this stage 2 was trained in mode 'conditional' and does not know what it would be without the shared"
                " part: guidance without labels must be 1, or use mode joint"
            )
        if SHARED in wanted and mode != "joint":
            raise MandorlaError(
                f"this stage 2 was trained in mode {mode!r}, which does not generate shared parts: use mode joint"
            )
        if mode == "conditional" and SHARED not in known:
            raise MandorlaError(
                "this stage 2 was trained in mode 'conditional': it needs the shared part as condition: give it"
            )


def _everywhere(cells: Tensor | None, z: Tensor) -> Tensor:
    """Return the marks of `cells` `(B, *grid)` for all channels of `z` `(B, C, *grid)`; none where there are none."""
    return torch.zeros_like(z, dtype=torch.bool) if cells is None else cells[:, None].expand_as(z)


def sample_noise(layout: Layout, seed: int, keys: Sequence[tuple[int, ...]]) -> Components:
    """Return standard normal components, one row for each of `keys`; a row depends on (seed, its key) alone.

    Keys of different length never give the same noise.
    """
    size = sum(torch.Size(shape).numel() for shape in layout.shapes.values())
    rows = [np.random.default_rng((seed, len(key), *key)).standard_normal(size, np.float32) for key in keys]
    return layout.split(torch.from_numpy(np.stack(rows)))
