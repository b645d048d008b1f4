"""The memorised model, as the engine's tests have it."""

from tests.worker.engine.conftest import memorised

__all__ = ["memorised"]
