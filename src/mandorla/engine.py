"""The networks of a run at work, a few samples at once: tensors in, tensors out.

What goes in fits the run: `mandorla.model` makes sure of it, and says what all this is for. What is drawn for a sample
depends on (seed, its key) alone; whitening happens inside.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mandorla.arguments import check_whole
from mandorla.checkpoint import hash_tensors
from mandorla.config import CONFIG
from mandorla.data.dataset import Modality
from mandorla.device import choose_device
from mandorla.diffusion.model import Diffusion, sample_noise
from mandorla.diffusion.samplers import SamplingConfig
from mandorla.diffusion.store import is_whole, load_diffusion, to_tensors
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.latent_cache import LatentPart, open_latents
from mandorla.latents import SHARED, Components, Latents, Layout, Whitening, to_sphere
from mandorla.parallel import divide
from mandorla.recipe import read_run
from mandorla.refiner.config import RefinerConfig
from mandorla.refiner.model import Refiner
from mandorla.refiner.store import load_refiner
from mandorla.vae.model import VAE, encode_batch
from mandorla.vae.store import load_vae

# What noise is for begins its key, or ends it; no sample has such a number. So no operation draws the noise of another:
# else what is drawn given a sample would be what made it.
ENCODE, COMPLETE, VARY, INPAINT, PRIVATE, TRANSLATE, _STEP, _DETAIL = range(2**32 - 8, 2**32)
_CHUNK = 256  # samples that go through a network at once, at most
_VALUES = 2**21  # and their values, about: what does not fit into a processor's cache takes half as long again
_ON_GPU = 8  # times as many on a GPU, which otherwise waits for Python
Keys = Sequence[tuple[int, ...]]


class Engine:
    """Hold the two stages of a run and its refiner, which are loaded when they are needed, and compute with them.

    `sampling` says how everything is drawn, `refining` how detail is. Raises MandorlaError if `run` is not a run
    folder, or has no stage 1.
    """

    def __init__(self, run: Path):
        self.run = run
        self.recipe = read_run(run)
        self.device = _device_of(self.recipe.device, run)
        vae, self.weights = load_vae(run, self.recipe.vae.model)
        self.vae: VAE = vae.to(self.device)
        self.modalities: tuple[Modality, ...] = vae.modalities
        self.sampling: SamplingConfig = self.recipe.diffusion.sampling
        self.refining: RefinerConfig = self.recipe.refiner

    @property
    def draws(self) -> bool:
        """Return whether there is a stage 2; without one samples are encoded and decoded alone."""
        return is_whole(self.run)

    @property
    def diffusion(self) -> Diffusion:
        """Return stage 2. Raises MandorlaError if it is not trained, or on the latents of another stage 1."""
        return self._stage_2[0]

    @cached_property
    def refiner(self) -> Refiner | None:
        """Return what adds detail to decoded images; None if the run has none."""
        refiner = load_refiner(self.run, self.recipe.refiner, self.vae, self.weights)
        return refiner and refiner.to(self.device)

    @cached_property
    def whitening(self) -> Whitening:
        """Return mean and standard deviation of each channel of the latents over the training set."""
        return self._cache[1]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Return a hash of the weights of `vae`, `diffusion` and, if there is one, `refiner`: of samples, the maker."""
        return self.hashes_of_decoding | {"diffusion": hash_tensors(to_tensors(*self._stage_2))}

    @cached_property
    def hashes_of_decoding(self) -> dict[str, str]:
        """Return those of `vae` and, if there is one, `refiner`: of what is decoded without being drawn, the maker."""
        refiner = self.refiner
        return {"vae": self.weights} | ({"refiner": hash_tensors(refiner.state_dict())} if refiner else {})

    @property
    def at_once(self) -> int:
        """Return how many samples go through the networks at once; more take memory, not less time."""
        many = _ON_GPU if self.device.type == "cuda" else 1
        return max(1, min(many * _CHUNK, many * _VALUES // sum(math.prod(m.shape) for m in self.modalities)))

    @cached_property
    def _stage_2(self) -> tuple[Diffusion, Whitening]:
        diffusion, whitening = load_diffusion(self.run, self.recipe.diffusion, self.vae.layout, self.weights)
        return diffusion.to(self.device), whitening

    @cached_property
    def _cache(self) -> tuple[dict[str, LatentPart], Whitening]:
        return open_latents(self.run, self.recipe, self.vae.layout, self.weights)

    def _encode(self, x: Components, present: Components, seed: int | None) -> Components:
        """Return the latents of `x`, private parts at the mean of their posterior, or drawn from it by a `seed`."""
        count = len(next(iter(x.values())))

        def encode(rows: slice) -> Components:
            here = ({name: z[rows] for name, z in part.items()} for part in (x, present))
            encoded = encode_batch(self.vae, *here)
            if seed is None:
                return encoded.latents.components
            noise = sample_noise(self.vae.layout, seed, [(ENCODE, i) for i in range(count)[rows]])
            return encoded.draw({name: z.to(self.device) for name, z in noise.items()})

        return self._in_chunks(count, encode)

    def _decode(self, latents: Latents, seed: int, keys: Keys, refined: bool) -> Components:
        """Return the modalities of `latents`, in [0, 1], `refined` by the detail in them, or by that of `keys`."""

        def decode(rows: slice) -> Components:
            here = latents[rows]
            images = {name: self.vae.decode(name, here.shared, u).clamp(0, 1) for name, u in here.private.items()}
            lacking = [name for name in images if name not in here.detail]
            for name, noise in (here.detail | self._detail(lacking, seed, keys[rows])).items() if refined else ():
                if self._refines(name) and name in images:
                    x = self.refiner.refine(name, here, images[name], noise, self.refining, self.vae.read)
                    images[name] = x.clamp(0, 1)
            return images

        return self._in_chunks(len(latents), decode)

    def _detail(self, names: Sequence[str], seed: int, keys: Keys) -> Components:
        """Return the noise of the detail of those modalities that have some; a row depends on (seed, its key) alone."""
        shapes, noise = {m.name: m.shape for m in self.modalities}, {}
        for name in filter(self._refines, names):
            own = [(*key, self.refiner.names.index(name), _DETAIL) for key in keys]
            noise[name] = sample_noise(Layout({name: shapes[name]}), seed, own)[name].to(self.device)
        return noise

    def _refines(self, name: str) -> bool:
        """Return whether images of a modality have detail."""
        return bool(self.refining.steps and self.refiner and name in self.refiner.names)

    def _generate(
        self,
        known: Components,
        wanted: Sequence[str],
        keys: Keys,
        seed: int,
        steps: int | None = None,
        *,
        begin: Components | None = None,
        start: float = 0.0,
        held: Components | None = None,
        labels: Components | None = None,
    ) -> Latents:
        """Draw the `wanted` components given the `known` ones; return both. Sample i gets the noise of `keys[i]`.

        `begin`, `start`, `held` and `labels` are those of `Diffusion.generate`, `begin` in the scale of stage 1.
        Raises MandorlaError if there is nothing to draw, or `steps` or `seed` are no such numbers.
        """
        if not wanted or not keys:
            raise MandorlaError("nothing to draw: ask for at least one sample of at least one modality")
        diffusion, whitening = self._stage_2
        sampling = self.sampling if steps is None else self.sampling.model_copy(update={"steps": steps})
        check_whole("steps", sampling.steps, 1)
        check_whole("seed", seed, 0)
        known = {name: z.to(self.device) for name, z in known.items()}

        def draw(rows: slice) -> Components:
            def noise(*step: int) -> Components:
                own = [(*key, *step, *[_STEP] * len(step)) for key in keys[rows]]
                drawn = sample_noise(self.vae.layout, seed, own)
                return {name: drawn[name].to(self.device) for name in diffusion.layout.shapes}

            here, from_here, kept, asked = (
                {name: z[rows] for name, z in (of or {}).items()} for of in (known, begin, held, labels)
            )
            drawn = diffusion.generate(
                noise(),
                whitening.whiten(here),
                list(wanted),
                sampling,
                fresh=noise,
                begin=whitening.whiten(from_here) if begin else None,
                start=start,
                held=kept,
                labels=asked,
            )
            drawn = whitening.colour(drawn)
            if SHARED in drawn:
                cells = diffusion.network.whole_tokens(SHARED, kept[SHARED]) if SHARED in kept else None
                drawn[SHARED] = to_sphere(drawn[SHARED], cells)
            return here | drawn

        return Latents.of(self._in_chunks(len(keys), draw))

    def _through_flow(self, latents: Latents, residual: bool) -> Latents:
        """Return `latents` with each private part as the noise that the flow makes it of, given the shared part alone.

        Without `residual` that is undone. Such noise is whitened.
        """
        (diffusion, whitening), steps = self._stage_2, self.sampling.residual_steps
        as_abducted = SamplingConfig(sampler="heun", steps=steps, precision="fp32")

        def move(rows: slice) -> Components:
            here, private = latents[rows], {}
            unknown, known = self._unknown(len(here)), whitening.whiten({SHARED: here.shared})
            for name, z in (whitening.whiten(here.private) if residual else here.private).items():
                if residual:
                    private |= diffusion.abduct({name: z}, unknown, known, steps)
                else:
                    private |= diffusion.generate(unknown | {name: z}, known, [name], as_abducted)
            return {SHARED: here.shared} | (private if residual else whitening.colour(private))

        return replace(latents.having(self._in_chunks(len(latents), move)), residual=residual)

    def _log_likelihood(
        self, components: Components, wanted: Sequence[str], num_probes: int | None, labels: Components
    ) -> Tensor:
        """Return log p(wanted components | the others, labels), whitened, in nats, `(B,)`; exact without probes."""
        diffusion, whitening = self._stage_2
        components = whitening.whiten(components)
        size, probes = sum(components[name][0].numel() for name in wanted), None
        if num_probes is not None:
            probes = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], (num_probes, size)))

        def measure(rows: slice) -> Components:
            known, asked = ({name: z[rows] for name, z in part.items()} for part in (components, labels))
            data = {name: known.pop(name) for name in components if name in wanted}
            unknown = self._unknown(len(data[wanted[0]]))
            return {"nats": diffusion.log_likelihood(data, unknown, known, self.sampling.residual_steps, probes, asked)}

        return self._in_chunks(len(components[wanted[0]]), measure)["nats"]

    def _unknown(self, count: int) -> Components:
        """Return what stands for the unknown components of `count` samples, the same for each and at any time."""
        noise = sample_noise(self.diffusion.layout, 0, [(0,)])
        return {name: z.to(self.device).expand(count, *z.shape[1:]) for name, z in noise.items()}

    def _shared_of_training(self, first: int, num: int, seed: int) -> Tensor:
        """Return the shared parts of `num` training samples, drawn at random: the draws from `first` on."""
        parts, _ = self._cache
        chosen = np.random.default_rng(seed).integers(0, parts["train"].num_samples, first + num)[first:]
        return parts["train"].batch(chosen).latents.shared

    def _in_chunks(self, count: int, work: Callable[[slice], Components]) -> Components:
        """Return what `work` gives for all of `count` rows, a few at once; processes may divide them."""
        return divide([slice(n, min(n + self.at_once, count)) for n in range(0, count, self.at_once)], work)


def _device_of(name: str, run: Path) -> torch.device:
    """Return the device that a run asks for, or the CPU, with a warning, where there is none of that kind."""
    if name == "cuda" and not torch.cuda.is_available():
        text = "asks for device cuda, of which there is none here: the CPU computes, whatever the time"
        warnings.warn(f"{run / CONFIG}: {text}", MandorlaWarning, stacklevel=5)
        return torch.device("cpu")
    return choose_device(name)
