"""Measurements of a sequence, one file each. METHOD, "Metrics"; decoding is greedy, and final sums are float64."""

from worker.engine.metrics.extraction import extraction_likelihood
from worker.engine.metrics.memorization import memorization_accuracy
from worker.engine.metrics.perplexity import perplexity

__all__ = ["extraction_likelihood", "memorization_accuracy", "perplexity"]
