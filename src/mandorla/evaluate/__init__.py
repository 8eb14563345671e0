"""Figures and pictures that say what a trained model can do, beside chance, ceiling and control.

`evaluate` and `audit_run` measure a run. The rest takes arrays and gives named numbers, of whoever's model: images are
`(B, C, *size)` in [0, 1], features `(N, F)`, codes `(N, ...)`; what is a mean over samples is given per sample.

Names are imported on first use: the recipe, which holds the settings of the evaluation, must not need all of it.
"""

from importlib import import_module

_HOMES = {
    "audit": ("copies",),
    "coherence": ("agreement", "chance_agreement", "dependence", "histogram_distance"),
    "distances": ("density_coverage", "frechet_distance", "kernel_distance", "precision_recall"),
    "features": ("OnnxNetwork", "random_features"),
    "figures.fidelity": ("fidelity",),
    "figures.translation": ("signed_rank_p",),
    "images": (
        "calibration",
        "edge_overlap",
        "foreground",
        "mae",
        "ms_ssim",
        "mutual_information",
        "psnr",
        "spread_and_error",
        "ssim",
    ),
    "information": ("critic_information", "gaussian_information"),
    "probes": ("auc", "explained", "hits", "probe", "regress"),
    "record": ("Record",),
    "report": ("print_summary", "summary"),
    "retrieval": ("ranks", "recall_at"),
    "run": ("audit_run", "evaluate", "evaluate_run"),
    "segmenter": ("dice",),
    "settings": ("EvaluateConfig",),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)


def __getattr__(name: str):
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
