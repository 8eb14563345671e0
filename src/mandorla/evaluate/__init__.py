"""Figures and pictures that say what a trained model can do, beside chance, ceiling and control.

`evaluate` and `audit` measure a run. The rest takes arrays and gives named numbers, of whoever's model: images are
`(B, C, *size)` in [0, 1], features `(N, F)`, codes `(N, ...)`; what is a mean over samples is given per sample.
"""

from mandorla.evaluate.coherence import agreement, chance_agreement, histogram_distance
from mandorla.evaluate.distances import density_coverage, frechet_distance, kernel_distance, precision_recall
from mandorla.evaluate.features import OnnxNetwork, random_features
from mandorla.evaluate.figures.fidelity import fidelity
from mandorla.evaluate.images import foreground, mae, ms_ssim, psnr, spread_and_error, ssim
from mandorla.evaluate.information import critic_information, gaussian_information
from mandorla.evaluate.probes import auc, hits, probe
from mandorla.evaluate.record import Record
from mandorla.evaluate.report import print_summary, summary
from mandorla.evaluate.retrieval import ranks, recall_at
from mandorla.evaluate.run import audit_run, evaluate, evaluate_run
from mandorla.evaluate.settings import EvaluateConfig

__all__ = [
    "EvaluateConfig",
    "OnnxNetwork",
    "Record",
    "agreement",
    "auc",
    "audit_run",
    "chance_agreement",
    "critic_information",
    "density_coverage",
    "evaluate",
    "evaluate_run",
    "fidelity",
    "foreground",
    "frechet_distance",
    "gaussian_information",
    "histogram_distance",
    "hits",
    "kernel_distance",
    "mae",
    "ms_ssim",
    "precision_recall",
    "print_summary",
    "probe",
    "psnr",
    "random_features",
    "ranks",
    "recall_at",
    "spread_and_error",
    "ssim",
    "summary",
]
