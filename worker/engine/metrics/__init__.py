"""What is measured on a sequence: one file each. METHOD, "Metrics"; all greedy, all in float64 at the end."""

from worker.engine.metrics.extraction import extraction_likelihood
from worker.engine.metrics.memorization import memorization_accuracy
from worker.engine.metrics.perplexity import perplexity

__all__ = ["extraction_likelihood", "memorization_accuracy", "perplexity"]
