"""Both stages joined: what a trained run can do.

Arrays and tensors of data are `(B, C, *size)` with values in [0, 1], by modality name; `to_unit` makes them of values
as files hold them, `from_unit` undoes it. What lies far outside of what the model was trained on is warned of. Latents
are in the scale of stage 1; whitening happens inside. What is drawn for sample i depends on (seed, i) alone, not on how
many are drawn.
"""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mandorla.arguments import Arguments, Data, check_part, check_whole, names_in, type_name
from mandorla.config import checked
from mandorla.data import follow_record, load_data
from mandorla.data.dataset import Splits
from mandorla.data.intensity import Fitted, read_intensity
from mandorla.diffusion.labels import Given, to_labels
from mandorla.diffusion.samplers import SamplingConfig
from mandorla.engine import COMPLETE, INPAINT, PRIVATE, TRANSLATE, VARY, Engine, Keys
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.latents import SHARED, Components, Latents, noise_between, to_sphere
from mandorla.refiner.config import RefinerConfig
from mandorla.regions import cells_in, fitting, hide
from mandorla.storage import INTENSITY

Part = Literal["both", "shared", "private"]
_STRANGE = 0.1  # share of a modality's inputs from which on they are warned of: scans end in a few blank slices


@dataclass(frozen=True)
class Samples:
    """Hold generated data `x[name]` `(B, C, *size)` and the latents it was decoded from."""

    x: dict[str, Tensor]
    latents: Latents


def load(run: Path | str) -> "Mandorla":
    """Return the model in a run folder. Raises MandorlaError if there is none."""
    if not isinstance(run, str | os.PathLike):
        raise MandorlaError(f"load takes the path of a run folder, not {run!r}")
    run = Path(run)
    if not run.is_dir():
        raise MandorlaError(f"{run}: no such run folder: give the folder that `mandorla train vae` wrote")
    return Mandorla(run)


class Mandorla(Engine):
    """Encode, decode, sample, translate, swap and interpolate with the two stages of a run.

    `sampling` says how everything is drawn, `refining` how detail is; they are the recipe's and may be replaced.
    """

    def __init__(self, run: Path):
        super().__init__(run)
        self.arguments = Arguments(self.modalities, self.vae.layout, self.device)
        self.intensity: dict[str, Fitted] = read_intensity(run)
        if lacking := [m.name for m in self.modalities if m.name not in self.intensity]:
            raise MandorlaError(f"{run / INTENSITY} is damaged (no {lacking[0]!r}): restore it, or begin a new run")

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute. Raises MandorlaError for settings that no recipe may have."""
        cls = {"sampling": SamplingConfig, "refining": RefinerConfig}.get(name)
        super().__setattr__(name, checked(value, cls, name) if cls else value)

    def data(self) -> Splits:
        """Return the data that the run was trained on, in the same parts.

        Raises MandorlaError if samples were added, removed or renamed since; warns if their images changed.
        """
        return follow_record(self.run, load_data(self.recipe.data, self.recipe.seed))

    def to_unit(self, values: Mapping[str, np.ndarray], groups: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return values `(B, ...)` as files hold them as float32 in [0, 1], by the run's intensity.

        `groups` `(B,)` names the subject of each sample, which counts where each subject has its own range; without it
        every sample is one of its own.
        """
        self.arguments.names(names_in(values))
        return {name: self.intensity[name].apply_new(np.asarray(v), groups) for name, v in values.items()}

    def from_unit(self, x: Data) -> dict[str, np.ndarray]:
        """Return `x` in [0, 1] on the scale of the files that the run was trained on, float32: `to_unit` undone."""
        self.arguments.names(names_in(x))
        return {name: self.intensity[name].invert(torch.as_tensor(v).cpu().numpy()) for name, v in x.items()}

    def strange(self, x: Data) -> str:
        """Return in words which modalities in `x`, in [0, 1], look like nothing that was trained on; empty if none."""
        counts = {
            name: (int(seen.outside(torch.as_tensor(value)).sum()), len(value))
            for name, value in x.items()
            if (seen := self.intensity[name].seen) and len(value)
        }
        found = [f"{count} of {num} {name}" for name, (count, num) in counts.items() if count > _STRANGE * num]
        if not found:
            return ""
        return (
            f"{', '.join(found)}: much darker or brighter than anything {self.run} was trained on; results may mean"
            " nothing: check the units and range of the values"
        )

    # ----------------------------------------------------------------------------------------------------- stage 1

    @torch.no_grad()
    def encode(
        self,
        x: Data,
        present: Mapping[str, Tensor] | None = None,
        residual: bool = False,
        seed: int | None = None,
    ) -> Latents:
        """Return the shared part, read from all modalities given, and the posterior mean of each one's private part.

        `present[name]` (bool, `(B,)`) says which samples have a modality; left out, all have all that are given. What
        stands in `x` for a modality that a sample does not have is not looked at.

        With a `seed` private parts are drawn from their posterior instead, as stage 2 learned them: their means vary
        less, most where a modality tells little of its private part.

        With `residual` each private part is replaced by the noise from which stage 2 makes it given the shared part:
        what a digit's manner of writing is beyond the digit. It needs a stage 2 of mode joint or conditional.
        """
        tensors, masks = self._checked(x, present)
        if seed is not None:
            check_whole("seed", seed, 0)
        latents = Latents.of(self._encode(tensors, masks, seed))
        if not all(rows.all() for rows in masks.values()):
            latents = replace(latents, present=masks)
        return self.to_residual(latents) if residual else latents

    @torch.no_grad()
    def decode(
        self,
        latents: Latents,
        seed: int = 0,
        keys: Keys | None = None,
        refined: bool = True,
    ) -> dict[str, Tensor]:
        """Return every modality whose private part is in `latents`, clipped to [0, 1].

        Where the run has a refiner, images have the detail that it draws, unless they shall not be `refined`: of the
        noise that is in `latents`, else of noise that depends, for sample i, on (seed, *keys[i]); `keys` are numbers
        from 0, by default (i,).
        """
        if not isinstance(latents, Latents):
            raise MandorlaError(f"decode takes Latents, as `encode` and `sample` give them, not a {type_name(latents)}")
        if latents.shared is None:
            raise MandorlaError("latents without a shared part cannot be decoded: give one, as `encode` does")
        latents = self.from_residual(latents)
        return self._decode(latents, seed, _keys_of(len(latents), keys), refined)

    # ----------------------------------------------------------------------------------------------------- stage 2

    def sample(
        self,
        num: int,
        seed: int = 0,
        steps: int | None = None,
        best_of: int = 1,
        first: int = 0,
        labels: Given | None = None,
    ) -> Samples:
        """Return `num` new matching tuples, the samples `first`, `first` + 1, ... of this seed.

        Each is the most consistent of `best_of` draws: two halve the tuples that do not belong together, many favour
        what is easily drawn. `labels` are what stage 2 was trained with as `diffusion.labels`: `{"grade": "high"}`, or
        a value for each sample, None where it is not known.

        Where stage 2 does not model the shared part (modes "conditional" and "private"), it is taken from training
        samples at random, whatever their labels are, and only the private parts are new.
        """
        check_whole("num", num, 1)
        check_whole("seed", seed, 0)
        check_whole("best_of", best_of, 1)
        check_whole("first", first, 0)
        joint, count = self.diffusion.config.mode == "joint", num * best_of
        if labels and not joint:
            text = "labels say how private parts are drawn; shared parts are those of any training samples: mode joint"
            warnings.warn(f"{text} draws them too", MandorlaWarning, stacklevel=2)
        shared = None if joint else self._shared_of_training(first, num, seed)
        known = {} if joint else {SHARED: shared.repeat_interleave(best_of, 0)}
        wanted = [name for name in self.vae.layout.shapes if name not in known]
        keys = [(first + i // best_of, i % best_of) if best_of > 1 else (first + i,) for i in range(count)]
        latents = self._generate(known, wanted, keys, seed, steps, labels=self._asked(labels, num, best_of))
        latents = replace(latents, detail=self._detail(list(latents.private), seed, keys))
        samples = Samples(self.decode(latents), latents)
        if best_of == 1:
            return samples
        best = self.consistency(samples).view(num, best_of).argmax(1).cpu()
        rows = torch.arange(num) * best_of + best
        return Samples({name: x[rows] for name, x in samples.x.items()}, latents[rows])

    @torch.no_grad()
    def consistency(self, samples: Samples) -> Tensor:
        """Return how far the shared parts read again from each modality agree with that drawn, cosines `(B,)`.

        The mean over modalities; a map counts as one long vector, so that its strong cells weigh most. 1 is agreement,
        0 chance.
        """
        if not isinstance(samples, Samples):
            raise MandorlaError(f"consistency takes Samples, as `sample` gives them, not a {type_name(samples)}")
        drawn = samples.latents.shared
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MandorlaWarning)  # of strange inputs: they are the model's own
            again = [self.encode({name: x}).shared for name, x in samples.x.items()]
        return torch.stack([cosine_similarity(shared.flatten(1), drawn.flatten(1)) for shared in again]).mean(0)

    def complete(
        self,
        known: Latents,
        wanted: Sequence[str] | None = None,
        num: int = 1,
        seed: int = 0,
        labels: Given | None = None,
    ) -> Latents:
        """Return `num` completions of each of the B latents `known`, one after another: `(B * num, *shape)`.

        Any components may be known, `Latents(None, {"t1": u})` too, or none: `Latents(None, {})` asks for one sample.
        `wanted` are components (default: all others), "shared" among them; what is neither is left out of what comes
        back, and so out of what it depends on. `labels` are those of the B latents, as for `sample`.
        """
        check_whole("num", num, 1)
        if not isinstance(known, Latents):
            raise MandorlaError(f"complete takes Latents, as `encode` gives them, not a {type_name(known)}")
        known = self.from_residual(self._whole(known)) if known.components else known
        count, components = len(known) if known.components else 1, known.repeat(num).components
        others = [name for name in self.diffusion.layout.shapes if name not in components]
        wanted = others if wanted is None else list(dict.fromkeys(self.arguments.listed(wanted)))
        self.arguments.names([name for name in wanted if name != SHARED])
        if both := sorted(set(wanted) & set(components)):
            raise MandorlaError(f"component {both[0]!r} is both known and wanted: leave it out of one")
        keys = _draws_of(_keys_of(count), num, COMPLETE)
        return self._generate(components, wanted, keys, seed, labels=self._asked(labels, count, num))

    def vary(
        self,
        source: Data | Latents,
        strength: float,
        part: Part = "private",
        seed: int = 0,
        num: int = 1,
        labels: Given | None = None,
    ) -> Samples:
        """Return `num` samples like each of `source`, the more unlike, the greater `strength` in [0, 1]; 1: drawn anew.

        They come one after another, `(B * num, ...)`. `part` says what varies, given the other part; "both" needs a
        stage 2 of mode joint. Detail that a refiner draws varies with the private part. `labels` are those of the B
        samples, as for `sample`. What was varied already needs another `seed`, or it goes the same way again.
        """
        if not isinstance(strength, Real) or not 0 <= strength <= 1:
            raise MandorlaError(f"strength is a number from 0 to 1, not {strength!r}")
        check_whole("num", num, 1)
        latents = self.from_residual(self._latents(source))
        names = self._drawn(latents, part)
        detail = self._detail(list(latents.private), 0, _keys_of(len(latents))) | latents.detail
        keys = _draws_of(_keys_of(len(latents)), num, VARY)
        latents = replace(latents, detail=detail).repeat(num)
        known = {name: z for name, z in latents.components.items() if name not in names}
        begin = {name: latents.components[name] for name in names}
        asked = self._asked(labels, len(keys) // num, num)
        drawn = self._generate(known, names, keys, seed, begin=begin, start=1.0 - strength, labels=asked)
        detail = latents.detail
        if part != "shared":
            fresh = self._detail(list(detail), seed, keys)
            detail = {name: noise_between(z, fresh[name], strength) for name, z in detail.items()}
        drawn = replace(drawn, detail=detail)
        return Samples(self.decode(drawn), drawn)

    def inpaint(
        self,
        source: Data | Latents,
        region: Tensor | np.ndarray,
        part: Part = "both",
        seed: int = 0,
        num: int = 1,
        labels: Given | None = None,
    ) -> Samples:
        """Return `num` versions of each sample of `source`, drawn anew in a region, given what lies around it.

        They come one after another, `(B * num, ...)`. `region` is bool `(*size)` or `(B, *size)`, in pixels; every
        token of a latent map that it touches is drawn anew. `part` says whose maps are; vectors stay as they are. Stage
        2 learns it with `diffusion.region_share`.

        Of data, what lies around the region stays as it is, and what lies in it is not looked at, unless one of the
        parts stays: that one is read from all of an image. `labels` are those of the B samples, as for `sample`.
        `sampling.guidance` is towards them and towards what is known as a whole; where all is maps drawn in part,
        nothing is.
        """
        check_whole("num", num, 1)
        region = self.arguments.region(region)
        seen = None if isinstance(source, Latents) else self._checked(source, None)[0]
        hidden = {name: hide(x, region) for name, x in seen.items()} if seen and part == "both" else None
        with warnings.catch_warnings():
            if hidden:
                warnings.simplefilter("ignore", MandorlaWarning)  # of strange inputs: these are the model's own
            latents = self.from_residual(self.encode(hidden) if hidden else self._latents(source))
        maps = [name for name in self._drawn(latents, part) if latents.components[name].ndim > 2]
        if not maps:
            raise MandorlaError(
                f"{'no part' if part == 'both' else f'no {part} part'} is a map: vectors have no regions"
            )
        if not self.diffusion.config.region_share:
            raise MandorlaError("stage 2 never saw regions: train it with diffusion.region_share=0.2, or so")
        cells = {name: cells_in(self.vae, region, name, latents.components[name]) for name in maps}
        cells = {name: here.repeat_interleave(num, 0) for name, here in cells.items() if here is not None}
        if not cells:
            sizes = sorted({tuple(modality.size) for modality in self.modalities if modality.size})
            raise MandorlaError(
                f"a region has the size of the images, {' or '.join(map(str, sizes))}, or one more axis for"
                f" {len(latents)} samples, not the shape {tuple(region.shape)}"
            )
        names = list(cells)
        keys = _draws_of(_keys_of(len(latents)), num, INPAINT)
        latents = latents.repeat(num)
        begin = {name: latents.components[name] for name in names}
        held = {name: ~here for name, here in cells.items()}
        known = {name: z for name, z in latents.components.items() if name not in begin}
        asked = self._asked(labels, len(keys) // num, num)
        drawn = self._generate(known, names, keys, seed, begin=begin, held=held, labels=asked)
        drawn = replace(drawn, detail=self._detail(list(drawn.private), seed, keys) | latents.detail)
        x = self.decode(drawn)
        for name in seen or {}:
            if name in x and (inside := fitting(region, x[name].shape[2:], len(latents) // num)) is not None:
                x[name] = x[name].where(inside.repeat_interleave(num, 0)[:, None], seen[name].repeat_interleave(num, 0))
        return Samples(x, drawn)

    def log_likelihood(
        self,
        source: Data | Latents,
        wanted: Sequence[str] | None = None,
        num_probes: int | None = None,
        labels: Given | None = None,
    ) -> Tensor:
        """Return log p(wanted components | all others of `source`) of the whitened latents, in nats, `(B,)`.

        `wanted` are components, "shared" or modalities; by default all that stage 2 makes. Exact, at a cost that grows
        with the number of values; `num_probes` random directions estimate it for large latents. Differences between
        samples of one model mean something; the shared part lies on a sphere, so that its own density has no absolute
        one. Given `labels`, as for `sample`: which label fits best is what the model takes a sample for. Of data,
        private parts are drawn from their posterior, as stage 2 learned them (see `encode`).
        """
        diffusion = self.diffusion
        latents = self._whole(self._latents(source) if isinstance(source, Latents) else self.encode(source, seed=0))
        components = self.from_residual(latents).components
        components = {name: components[name] for name in diffusion.layout.shapes if name in components}
        made = [name for name in components if name != SHARED or diffusion.config.mode == "joint"]
        wanted = made if wanted is None else list(dict.fromkeys(self.arguments.listed(wanted)))
        if not wanted:
            raise MandorlaError("log_likelihood of nothing: name at least one component as wanted")
        if num_probes is not None:
            check_whole("num_probes", num_probes, 1)
        if unknown := [name for name in wanted if name not in components]:
            raise MandorlaError(f"no component {unknown[0]!r} in what is given, only {', '.join(components)}")
        asked = self._asked(labels, len(components[wanted[0]]))
        return self._log_likelihood(components, wanted, num_probes, asked)

    def sample_private(
        self, shared: Tensor, seed: int = 0, wanted: Sequence[str] | None = None, labels: Given | None = None
    ) -> Latents:
        """Return `shared` `(B, *shape)` with private parts drawn for it, of the modalities `wanted` (default: all).

        `labels` are those of the B samples, as for `sample`.
        """
        names = self.arguments.names(wanted or self.vae.layout.modalities)
        shared = self._latents(Latents(shared, {})).shared
        asked, keys = self._asked(labels, len(shared)), [(PRIVATE, index) for index in range(len(shared))]
        return self._generate({SHARED: shared}, names, keys, seed, labels=asked)

    def translate(
        self,
        x: Data,
        wanted: Sequence[str],
        num_samples: int = 1,
        seed: int = 0,
        steps: int | None = None,
        labels: Given | None = None,
        keys: Keys | None = None,
    ) -> dict[str, Tensor]:
        """Return `num_samples` draws of each modality in `wanted`, given those in `x`: `(num_samples, B, C, *size)`.

        The shared part is read once from what is given; the private parts of what is wanted are drawn. Draw k of
        sample i depends on (seed, *keys[i], k) alone; `keys` are numbers from 0, by default (i,). `labels` are those of
        the B samples, as for `sample`.

        With `num_samples=0` nothing is drawn: the private parts are at the mean of their prior, `(1, B, C, *size)`.
        That is one quick guess, without the refiner; a good one if the training decoded samples so
        (`vae.loss.private_dropout`).
        """
        wanted = self.arguments.translation(names_in(x), wanted, num_samples, labels, steps)
        encoded = self.encode(x)
        if num_samples == 0:
            c = encoded.shared
            central = {name: c.new_zeros(len(c), *self.vae.layout.shapes[name]) for name in wanted}
            return {name: z[None] for name, z in self.decode(Latents(c, central), refined=False).items()}
        known, keys = encoded.repeat(num_samples), _draws_of(_keys_of(len(encoded), keys), num_samples, TRANSLATE)
        asked = self._asked(labels, len(encoded), num_samples)
        latents = self._generate(known.components, wanted, keys, seed, steps, labels=asked)
        drawn = Latents(latents.shared, {name: latents.private[name] for name in wanted})
        decoded = self.decode(drawn, seed, keys)
        return {name: z.unflatten(0, (-1, num_samples)).transpose(0, 1) for name, z in decoded.items()}

    def swap(
        self, shared_from: Data | Latents, private_from: Data | Latents, residual: bool = False
    ) -> dict[str, Tensor]:
        """Return the modalities of `private_from`, with the shared part of `shared_from`; as many samples in both.

        With `residual`, or of latents that are residual, it is the residual of the private part that is kept: the same
        manner, another subject.
        """
        shared, private = self._latents(shared_from), self._latents(private_from)
        if residual:
            private = self.to_residual(private)
        if len(shared) != len(private):
            raise MandorlaError(f"swap needs as many samples on both sides, not {len(shared)} and {len(private)}")
        return self.decode(replace(private, shared=shared.shared))

    def interpolate(
        self,
        a: Data | Latents,
        b: Data | Latents,
        num: int = 8,
        part: Part = "both",
    ) -> dict[str, Tensor]:
        """Return `num` steps from `a` to `b`, ends included, `(num, B, C, *size)`; `part` says what moves.

        The part that does not move stays that of `a`. Only modalities that both have are returned.
        """
        check_part(part)
        check_whole("num", num, 1)
        first, last = self._ends(a, b)
        weights = torch.linspace(0, 1, num).tolist()
        frames = [first.towards(last, w * (part != "private"), w * (part != "shared")) for w in weights]
        return self._decode_frames(frames)

    def mix(
        self, a: Data | Latents, b: Data | Latents, shared: float, private: float, residual: bool = False
    ) -> dict[str, Tensor]:
        """Return samples between `a` and `b`: their shared parts mixed with weight `shared` on that of `b`, in [0, 1],
        their private parts with weight `private`; only modalities that both have.

        Weights 0 and 1 give `swap`. With `residual`, or of latents that are residual, it is the residuals of the
        private parts that are mixed.
        """
        for name, weight in {"shared": shared, "private": private}.items():
            if not isinstance(weight, Real) or not 0 <= weight <= 1:
                raise MandorlaError(f"{name} must be a weight in [0, 1], not {weight!r}")
        first, last = self._ends(*map(self.to_residual, map(self._latents, (a, b)))) if residual else self._ends(a, b)
        return self.decode(first.towards(last, shared, private))

    def traverse(
        self, source: Data | Latents, component: str, channel: int, num: int = 5, reach: float = 2.0
    ) -> dict[str, Tensor]:
        """Return `num` versions of each sample in which one channel of one component moves, `(num, B, C, *size)`.

        It moves from `-reach` to `+reach` standard deviations, over the training set, around where it is; on a map
        everywhere alike. `component` is "shared" or a modality; all modalities that depend on it are returned.
        """
        check_whole("num", num, 1)
        here = self._latents(source)
        if component != SHARED:
            self.arguments.names([component])
        if component not in here.components:
            raise MandorlaError(f"nothing to move: the sample has no {component!r}")
        channels = self.vae.layout.shapes[component][0]
        if not isinstance(reach, Real) or not math.isfinite(reach):
            raise MandorlaError(f"reach is a number of standard deviations, not {reach!r}")
        check_whole("channel", channel, 0)
        if channel >= channels:
            raise MandorlaError(f"{component!r} has channels 0 to {channels - 1}, not {channel}")
        if component != SHARED:
            here = replace(here, private={component: here.private[component]})
        std = 1.0 if here.residual and component != SHARED else self.whitening.std[component].to(self.device)[channel]
        frames = []
        for move in torch.linspace(-reach, reach, num).tolist():
            moved = here.components[component].clone()
            moved[:, channel] += move * std
            moved = to_sphere(moved) if component == SHARED else moved
            frames.append(here.having(here.components | {component: moved}))
        return self._decode_frames(frames)

    def to_residual(self, latents: Latents) -> Latents:
        """Return each private part as the noise from which stage 2 makes it, given the shared part (abduction).

        The flow p(u | c) is followed backwards: the residual depends on the shared part as far as the flow is wrong and
        no further, and both together still determine the private part. Whitened: standard normal, as far as private
        parts are drawn as stage 2 learned them; those of posterior means vary less (see `encode`).
        """
        return self._moved(latents, residual=True)

    def from_residual(self, latents: Latents) -> Latents:
        """Undo `to_residual`; latents that are not residual stay as they are."""
        return self._moved(latents, residual=False)

    # ------------------------------------------------------------------------------------------------------ inside

    def _ends(self, a: Data | Latents, b: Data | Latents) -> tuple[Latents, Latents]:
        """Return two ends to go between, with the modalities that both have."""
        first, last = self._latents(a), self._latents(b)
        if len(first) != len(last):
            raise MandorlaError(f"mixing needs as many samples at both ends, not {len(first)} and {len(last)}")
        if first.residual != last.residual:
            raise MandorlaError("mixing needs residual private parts at both ends, or at neither: see to_residual")
        if first.shared is None or last.shared is None:
            raise MandorlaError("mixing needs a shared part at both ends: give one, as `encode` does")
        names = [name for name in first.private if name in last.private]
        if not names:
            raise MandorlaError("mixing needs a modality that both ends have: give one")
        usual = self._detail(names, 0, _keys_of(len(first)))

        def common(end: Latents) -> Latents:
            private = {name: end.private[name] for name in names}
            return replace(end, private=private, detail={n: end.detail.get(n, z) for n, z in usual.items()})

        return common(first), common(last)

    def _drawn(self, latents: Latents, part: Part) -> list[str]:
        """Return the names of the components that `part` means. Raises MandorlaError if stage 2 does not draw them."""
        check_part(part)
        self._whole(latents)
        mode = self.diffusion.config.mode
        if part != "private" and mode != "joint":
            text = f"this stage 2 was trained in mode {mode!r} and draws private parts alone: give part private"
            raise MandorlaError(f"{text}, or train mode joint")
        return [name for name in latents.components if part in ("both", "shared" if name == SHARED else "private")]

    def _whole(self, latents: Latents) -> Latents:
        """Return `latents`. Raises MandorlaError where samples lack a modality: stage 2 would take it for seen."""
        for name, rows in latents.present.items():
            if name in latents.private and not rows.all():
                raise MandorlaError(
                    f"{int((~rows).sum())} of {len(rows)} samples lack {name!r}: encode samples that have the same"
                    " modalities together, each group by itself"
                )
        return latents

    def _decode_frames(self, frames: Sequence[Latents]) -> dict[str, Tensor]:
        """Return the images of the same samples in each of `frames`, `(num, B, C, *size)`, with the same detail."""
        decoded = self.decode(Latents.cat(frames), keys=_keys_of(len(frames[0])) * len(frames))
        return {name: x.unflatten(0, (len(frames), -1)) for name, x in decoded.items()}

    def _moved(self, latents: Latents, residual: bool) -> Latents:
        """Return latents that are `residual` or not, as they are or through the flow."""
        latents = self._latents(latents)
        if latents.residual == residual:
            return latents
        if latents.shared is None:
            raise MandorlaError("residual private parts mean nothing without the shared part: give it too")
        if self.diffusion.config.mode == "private":
            raise MandorlaError("residual parts need a stage 2 that knows the shared part: mode joint or conditional")
        return self._through_flow(latents, residual)

    def _asked(self, labels: Given | None, num: int, times: int = 1) -> Components:
        """Return the labels of `num` samples, each `times` times, on the model's device, as stage 2 takes them."""
        known = to_labels(labels, self.diffusion.labels, num) if labels else {}
        return {name: z.repeat_interleave(times, 0).to(self.device) for name, z in known.items()}

    def _latents(self, source: Data | Latents) -> Latents:
        """Return latents that fit this model, on its device; data are encoded."""
        return self.arguments.latents(source) if isinstance(source, Latents) else self.encode(source)

    def _checked(self, x: Data, present: Mapping[str, Tensor] | None) -> tuple[Components, Components]:
        """Return `x` as float32 and `present` as bool tensors on the model's device; warn of what is strange."""
        tensors, masks = self.arguments.data(x, present)
        if found := self.strange({name: value[masks[name]] for name, value in tensors.items()}):
            warnings.warn(found, MandorlaWarning, stacklevel=4)  # of who called `encode`, past torch
        return tensors, masks


def _keys_of(count: int, keys: Keys | None = None) -> list[tuple[int, ...]]:
    """Return the keys of `count` samples, (i,) where none are given."""
    if keys is None:
        return [(i,) for i in range(count)]
    if len(keys) != count:
        raise MandorlaError(f"{len(keys)} keys for {count} samples: give one for each")
    for key in keys:
        if not isinstance(key, tuple) or not all(isinstance(n, int | np.integer) and n >= 0 for n in key):
            raise MandorlaError(f"a key is a tuple of whole numbers from 0, not {key!r}")
    return list(keys)


def _draws_of(keys: Keys, num: int, what_for: int) -> list[tuple[int, ...]]:
    """Return the keys of `num` draws for each of `keys`, one after another, of what the noise is for."""
    return [(what_for, *key, draw) for key in keys for draw in range(num)]
