#!/usr/bin/env python3
"""How often the copy audit fails models that copy nothing, and how often it finds those that do.

    python benchmarks/audit.py [--audits 300] [--samples 300] [--slices 20] [--threshold .05]

Audits are played through with figures of known laws in the place of distances: normal ones of generated samples and of
unseen ones, of which several are one patient's and correlate as the row says. A share of the generated ones are copies,
nearer than all else. An audit fails as `mandorla audit` does, in one space. Printed is the share of audits that fail,
first if unseen samples are counted as independent whosoever they are, then as the audit counts them.

What copies nothing should fail in .025 of all audits at most. The last rows have one unseen sample of each patient.
"""

import argparse
from collections.abc import Iterator, Sequence

import numpy as np

from mandorla.evaluate.audit import LEVEL, chance_of_as_many, suspicious
from mandorla.tables import markdown_head, markdown_row

PATIENTS = (5, 10, 30, 100)
ALIKE = (0.0, 0.3, 0.6, 0.9)  # correlation of two unseen samples of one patient
SHARES = (0.0, 0.1, 0.25)  # of the generated samples that are copies
SINGLE = (20, 50, 100, 300)  # unseen samples of which each is a patient's of its own
COPY = -9.0  # its figure: nearer than any of a normal law


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", type=int, default=300, help="audits of each kind")
    parser.add_argument("--samples", type=int, default=300, help="generated samples")
    parser.add_argument("--slices", type=int, default=20, help="unseen samples of each patient")
    parser.add_argument("--threshold", type=float, default=0.05, help="share of samples up to which none fails")
    settings = parser.parse_args(arguments)
    for line in measure(settings.audits, settings.samples, settings.slices, settings.threshold):
        print(line, flush=True)


def measure(audits: int, samples: int, slices: int, threshold: float) -> Iterator[str]:
    """Yield the lines of the table: shares of `audits` that fail, counted as independent / as audited."""
    kinds = [(patients, slices, alike) for patients in PATIENTS for alike in ALIKE]
    yield from markdown_head(["patients", "samples of each", "alike", *(f"copies {share:g}" for share in SHARES)])
    for patients, each, alike in kinds + [(num, 1, 0.0) for num in SINGLE]:
        rng, whose = np.random.default_rng(0), np.repeat(np.arange(patients), each)
        cells = []
        for share in SHARES:
            failed = []
            for _ in range(audits):
                unseen, made = draw(rng, patients, each, alike), draw(rng, samples, 1, alike)
                made[: round(share * samples)] = COPY
                many = suspicious(made, unseen).mean() > threshold
                ways = (np.arange(len(unseen)), whose)
                failed.append([many and chance_of_as_many(made, unseen, way) <= LEVEL for way in ways])
            cells.append(" / ".join(f"{rate:.3f}" for rate in np.mean(failed, 0)))
        yield markdown_row([patients, each, f"{alike:g}", *cells])


def draw(rng: np.random.Generator, patients: int, each: int, alike: float) -> np.ndarray:
    """Draw normal figures `(patients * each,)` of `each` samples of a patient, two of which correlate by `alike`."""
    own, rest = rng.standard_normal((patients, 1)), rng.standard_normal((patients, each))
    return (alike**0.5 * own + (1 - alike) ** 0.5 * rest).ravel()


if __name__ == "__main__":
    main()
