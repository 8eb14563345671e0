"""Figures and pictures that say what a trained model can do, beside chance, ceiling and control."""

from mandorla.evaluate.record import Record
from mandorla.evaluate.report import print_summary, summary
from mandorla.evaluate.run import evaluate, evaluate_run
from mandorla.evaluate.settings import EvaluateConfig

__all__ = ["EvaluateConfig", "Record", "evaluate", "evaluate_run", "print_summary", "summary"]
