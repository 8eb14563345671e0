"""Instances by class: which image, sound or drawing of a class a composed sample shows."""

from collections.abc import Iterable

import numpy as np

from mandorla.data.random import Draws


class Instances:
    """Draw rows of a table of instances by class; `rows` are those that may be drawn, `labels` `(N,)` are of all."""

    def __init__(self, labels: np.ndarray, rows: np.ndarray):
        by_class = [rows[labels[rows] == label] for label in range(labels.max() + 1)]
        self._counts = np.array([len(of_class) for of_class in by_class])
        self._by_class = np.stack([np.resize(of_class, self._counts.max()) for of_class in by_class])

    def draw(self, draws: Draws, label: np.ndarray, names: Iterable[str]) -> list[np.ndarray]:
        """Return for each of `names` a row of the class `label` `(B,)`, no two alike within a sample, each int `(B,)`.

        Every name has a stream of random numbers of its own.
        """
        taken = np.empty((len(label), 0), dtype=np.int64)
        for k, name in enumerate(names):
            choice = (draws / name).integers(self._counts[label] - k)
            for other in np.sort(taken, axis=1).T:  # the choice is among those that are left: step over the taken ones
                choice += choice >= other
            taken = np.column_stack([taken, choice])
        return list(self._by_class[label, taken.T])
