"""What a code knows: classifiers fitted on codes of training samples, scored on codes of test samples.

A linear probe (logistic regression) says what is there for the taking; a probe with one hidden layer also finds
what is there but folded. The second is the honest one for leaks: a linear probe understates them.
"""

import warnings
from typing import Literal

import numpy as np
from torch import Tensor

Kind = Literal["linear", "mlp"]


def features(code: Tensor) -> np.ndarray:
    """Flatten codes `(B, ...)` to features `(B, F)`; a map also gives each channel's extremes over space.

    The extremes make a small thing at an unknown place visible to a linear probe.
    """
    code = code.detach().float().cpu()
    flat = code.flatten(1)
    if code.ndim > 2:
        space = code.flatten(2)
        flat = np.concatenate([flat, space.amax(-1), space.amin(-1)], axis=1)
    return np.asarray(flat)


def probe(kind: Kind, train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, seed: int = 0) -> np.ndarray:
    """Fit a probe on `train` `(N, F)` with integer labels; return class probabilities `(K, classes)` on `test`.

    Features are standardised with the statistics of `train`. Column j belongs to the j-th smallest label.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes, counts = np.unique(train_labels, return_counts=True)
    if len(classes) == 1:
        return np.ones((len(test), 1))
    held_out = counts.min() > 1 and len(train) >= 10 * len(classes)  # a tenth of the samples, one of each class
    classifier = (
        LogisticRegression(max_iter=1000, C=min(1.0, 100 / train.shape[1]))
        if kind == "linear"
        else MLPClassifier((256,), early_stopping=bool(held_out), n_iter_no_change=5, max_iter=100, random_state=seed)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(StandardScaler(), classifier).fit(train, train_labels).predict_proba(test)


def hits(probabilities: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return for each sample whether its most probable class (columns ordered as `classes`) is its label, `(K,)`."""
    return np.unique(classes)[probabilities.argmax(1)] == labels


def chance_share(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Return the share of test labels that the best constant answer, the commonest training label, gets right."""
    values, counts = np.unique(train_labels, return_counts=True)
    return float(np.mean(test_labels == values[counts.argmax()]))


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative; .5 is chance."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else float("nan")
