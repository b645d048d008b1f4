"""The unlearning engine: it takes and returns tensors, and reports its tests as plain values.

It uses no database, HTTP, Celery, settings or clock. INTERFACES names what is exported here; METHOD defines what each
function computes.
"""

from worker.engine.fisher import row_importance
from worker.engine.inits.fila import fila_factors
from worker.engine.losses.ihl import inverted_hinge_loss
from worker.engine.metrics.extraction import extraction_likelihood
from worker.engine.metrics.memorization import memorization_accuracy
from worker.engine.options import Options
from worker.engine.unlearn import Result, unlearn

__all__ = [
    "Options",
    "Result",
    "extraction_likelihood",
    "fila_factors",
    "inverted_hinge_loss",
    "memorization_accuracy",
    "row_importance",
    "unlearn",
]
