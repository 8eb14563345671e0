#!/usr/bin/env python3
"""How good samples are by the number of network evaluations that one takes, for every sampler.

    python benchmarks/nfe.py runs/mine [--num 1000] [--nfe 2 4 8 16 32 64] [--samplers multistep heun euler sde]

Prints a table: Fréchet distance to real test samples in the spaces of features of `mandorla evaluate`, all modalities
together, and how often the judges see one class in all modalities of a sample, where the data have classes. Distances
of reconstructions stand below: what the decoder alone costs.

The noise is the same in every row, so that rows differ by their sampler alone. Guidance is the run's: where it asks two
networks, it does so half as often.
"""

import argparse
from pathlib import Path

import torch

import mandorla
from mandorla.diffusion.samplers import SAMPLERS, SamplingConfig, evaluations
from mandorla.evaluate import agreement, frechet_distance
from mandorla.evaluate.coherence import judge_all
from mandorla.evaluate.features import Networks, feature_spaces
from mandorla.evaluate.gather import choose
from mandorla.evaluate.judges import find_judges
from mandorla.tables import markdown_head, markdown_row

Images = dict[str, torch.Tensor]


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder with both stages")
    parser.add_argument("--num", type=int, default=1000, help="samples")
    parser.add_argument("--nfe", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64], help="evaluations per sample")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    arguments = parser.parse_args()
    for line in measure(mandorla.load(arguments.run), arguments.num, arguments.nfe, arguments.samplers):
        print(line, flush=True)


def measure(model: mandorla.Mandorla, num: int, nfe: list[int], samplers: list[str]):
    """Yield the lines of the table."""
    data, settings = model.data(), model.recipe.evaluate
    judges = find_judges(model.run / "evaluate" / "judges.safetensors", data, settings, model.recipe.seed, model.device)
    judges = judges if all(settings.label in judge.heads for judge in judges.values()) else {}
    spaces, _ = feature_spaces(model.modalities, judges, settings.features)
    rows = choose(data.test, num, model.recipe.seed)
    real = read(data.test.batch(rows).x, spaces)
    names = list(real)
    yield from markdown_head(["sampler", "evaluations", *(f"Fréchet, {name}" for name in names), "one class in all"])

    def line(title: str, evaluations: int | str, x: Images) -> str:
        distances = [float(frechet_distance(real[name], z)) for name, z in read(x, spaces).items()]
        agreed = f"{agreement(judge_all(judges, x, settings.label)).mean():.3f}" if judges else ""
        return markdown_row([title, evaluations, *(f"{distance:.4g}" for distance in distances), agreed])

    for sampler in samplers:
        asked = model.sampling.model_copy(update={"sampler": sampler})
        by_count = {evaluations(one): one for one in (within(most, asked) for most in nfe)}
        for count, sampling in by_count.items():
            model.sampling = sampling
            yield line(sampler, count, model.sample(len(rows)).x)
    train = data.train.batch(choose(data.train, num, model.recipe.seed))
    yield line("training samples, decoded", "", model.decode(model.encode(train.x, train.present)))
    yield line("training samples", "", train.x)


def within(most: int, sampling: SamplingConfig) -> SamplingConfig:
    """Return `sampling` in as many steps as `most` evaluations allow, one at least."""
    by_steps = [sampling.model_copy(update={"steps": steps}) for steps in range(1, max(most, 1) + 1)]
    return max((one for one in by_steps if evaluations(one) <= most), key=lambda one: one.steps, default=by_steps[0])


def read(x: Images, spaces: dict[str, Networks]) -> dict[str, torch.Tensor]:
    """Return the features of all modalities side by side, by space."""
    return {space: torch.cat([of[name].features(z) for name, z in x.items()], 1) for space, of in spaces.items()}


if __name__ == "__main__":
    main()
