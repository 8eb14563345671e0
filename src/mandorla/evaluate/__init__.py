"""Figures and pictures that say what a trained model can do, beside chance, ceiling and control."""
