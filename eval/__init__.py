"""Evaluation: a model's answers, beside what can be had without looking at the video."""
