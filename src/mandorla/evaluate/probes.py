"""What a code knows: classifiers and regressions, fitted on codes of training samples, scored on codes of test samples.

A linear probe (logistic regression, or ridge regression) says what is there for the taking; one with a hidden layer
also finds what is there but folded. The second is the honest one for leaks: a linear probe understates them. Neither
finds well what is far fainter than the rest; a probe of whitened codes does, in which faint directions are as long as
others.
"""

import warnings
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from mandorla.errors import MandorlaError
from mandorla.evaluate.arrays import Array, classes, code_rows, numbers, same_number, tensor

Kind = Literal["linear", "mlp"]
HIDDEN = 256  # units of the hidden layer
_PENALTIES = np.logspace(-1, 5, 13)  # that ridge regression chooses among
_HELD_OUT = 100  # training samples from which on a tenth says when a network has learned enough


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


def probe(
    kind: Kind, train: Array, train_labels: Array, test: Array, seed: int = 0, whiten: bool = False
) -> np.ndarray:
    """Fit a probe on `train` `(N, F)` with integer labels; return class probabilities `(K, classes)` on `test`.

    Features are standardised with the statistics of `train`, or their principal components are, but for those that are
    only rounding (`whiten`: for far fewer features than samples). Column j belongs to the j-th smallest label.
    Raises MandorlaError for another kind, codes that are not finite or not as long, and labels that are not as many.
    """
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = _same_kind(kind, train, test)
    labels = classes(train_labels, "training labels")
    same_number(train, labels, what="training codes and labels")
    known, counts = np.unique(labels, return_counts=True)
    if len(known) == 1:
        return np.ones((len(test), 1))
    held_out = counts.min() > 1 and len(train) >= 10 * len(known)  # a tenth of the samples, one of each class
    classifier = (
        LogisticRegression(max_iter=1000, C=min(1.0, 100 / train.shape[1]))
        if kind == "linear"
        else MLPClassifier(
            (HIDDEN,), early_stopping=bool(held_out), n_iter_no_change=5, max_iter=100, random_state=seed
        )
    )
    directions = 0
    if whiten:
        train, test = train.astype(np.float64), test.astype(np.float64)
        directions = _directions(train)
    scale = PCA(directions, whiten=True) if directions else StandardScaler()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(scale, classifier).fit(train, labels).predict_proba(test)


def regress(kind: Kind, train: Array, values: Array, test: Array, seed: int = 0) -> np.ndarray:
    """Fit a probe on `train` `(N, F)` with numbers; return what it says of `test`, `(K, D)`.

    `values` are `(N, D)` or `(N,)`.
    Ridge regression, its penalty chosen for each column by leaving one sample out, or a network with one hidden layer;
    features are standardised with the statistics of `train`. Raises MandorlaError as `probe` does.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import RidgeCV
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = _same_kind(kind, train, test)
    values = _columns(values, "values")
    same_number(train, values, what="training codes and values")
    scale = StandardScaler().fit(values)
    enough = bool(len(train) >= _HELD_OUT)
    model = (
        RidgeCV(_PENALTIES, alpha_per_target=True, gcv_mode="svd")
        if kind == "linear"
        else MLPRegressor(
            hidden_layer_sizes=(HIDDEN,), early_stopping=enough, n_iter_no_change=5, max_iter=100, random_state=seed
        )
    )
    targets = scale.transform(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = make_pipeline(StandardScaler(), model).fit(train, targets if targets.shape[1] > 1 else targets[:, 0])
    return scale.inverse_transform(fitted.predict(test).reshape(len(test), -1))


def explained(values: Array, guesses: Array) -> np.ndarray:
    """Return scores `(K,)` whose mean is R2, the share of the variance of `values` that `guesses` explain.

    Both are `(K, D)` or `(K,)`. It is the mean over columns, but for those that do not vary; NaN where none does. 1 is
    right, 0 as good as the mean, and worse than that is below 0. Raises MandorlaError for NaN and infinity, and where
    they have not as many rows or columns.
    """
    truth, guess = _columns(values, "values"), _columns(guesses, "guesses")
    same_number(truth, guess, what="values and guesses")
    same_number(truth.T, guess.T, what="numbers of each sample in values and guesses")
    varies = truth.max(0) > truth.min(0)  # the variance of equal numbers is not always 0
    if not varies.any():
        return np.full(len(truth), np.nan)
    return 1 - ((truth - guess)[:, varies] ** 2 / truth[:, varies].var(0)).mean(1)


def _columns(values: Array, what: str) -> np.ndarray:
    """Return one number, or several, of each sample as float64 `(N, D)`; raise MandorlaError as `code_rows` does."""
    found = tensor(values, what)
    return code_rows(found[:, None] if found.ndim == 1 else found, what).double().numpy()


def _same_kind(kind: Kind, train: Array, test: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return codes as rows; raise MandorlaError for another kind of probe, and codes that do not fit together."""
    if kind not in get_args(Kind):
        raise MandorlaError(f"there is no probe {kind!r}: take one of {', '.join(get_args(Kind))}")
    train, test = (code_rows(z, f"{which} codes").numpy() for z, which in ((train, "training"), (test, "test")))
    if train.shape[1] != test.shape[1]:
        raise MandorlaError(f"training codes have {train.shape[1]} numbers, test codes {test.shape[1]}: give one kind")
    return train, test


def _directions(codes: np.ndarray) -> int:
    """Return in how many directions `codes` `(N, F)` vary by more than float32 rounds."""
    lengths = np.linalg.svd(codes - codes.mean(0), compute_uv=False)
    return int((lengths > 1e-6 * max(lengths[0], np.abs(codes).max())).sum())


def hits(probabilities: Array, labels: Array, train_labels: Array) -> np.ndarray:
    """Return for each sample whether its most probable class is its label, bool `(K,)`.

    `probabilities` `(K, classes)` are those of a probe fitted with `train_labels`. Raises MandorlaError where they have
    not as many rows as there are `labels` `(K,)`, or not as many columns as training classes.
    """
    scores, truth = code_rows(probabilities, "probabilities").numpy(), classes(labels, "labels")
    known = np.unique(classes(train_labels, "training labels"))
    same_number(scores, truth, what="probabilities and labels")
    if scores.shape[1] != len(known):
        raise MandorlaError(f"there are probabilities of {scores.shape[1]} classes, training labels of {len(known)}")
    return known[scores.argmax(1)] == truth


def chance_share(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Return the share of test labels that the best constant answer, the commonest training label, gets right."""
    values, counts = np.unique(train_labels, return_counts=True)
    return float(np.mean(test_labels == values[counts.argmax()]))


def auc(scores: Array, labels: Array) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative; .5 is chance.

    NaN where `labels` `(N,)`, 0 or 1, are all the same. Raises MandorlaError for others, and for `scores` `(N,)` that
    are not finite or not as many.
    """
    from sklearn.metrics import roc_auc_score

    values, truth = numbers(scores, "scores"), classes(labels, "labels", 2)
    same_number(values, truth, what="scores and labels")
    return float(roc_auc_score(truth, values)) if len(np.unique(truth)) == 2 else float("nan")
