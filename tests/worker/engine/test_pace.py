"""The learning rate that follows what the epochs have done."""

import pytest

from worker.engine import Options
from worker.engine.pace import FARTHEST, learning_rate

OPTIONS = Options(learning_rate=1e-4, max_perplexity_ratio=1.1)


def history(*epochs: tuple[float, float]) -> list[dict[str, float]]:
    """Epochs of (MA, perplexity), with a limit of 0.3."""
    return [{"ma": ma, "ma_limit": 0.3, "perplexity": value} for ma, value in epochs]


@pytest.mark.parametrize(
    ("epochs", "factor"),
    [
        ([], 1),
        ([(0.9, 10.0)], 1),
        ([(0.9, 10.0), (0.7, 10.0)], 1),  # a third of the way
        ([(0.9, 10.0), (0.88, 10.0)], 2),
        ([(0.9, 10.0), (0.88, 10.0), (0.87, 10.0), (0.6, 10.0)], 4),
        ([(0.9, 10.0), (0.91, 10.9)], 0.5),  # slow, and near the budget
        ([(0.9, 10.0), (0.5, 10.79)], 1),
        ([(0.9, 10.0), (0.5, 10.81), (0.4, 10.5)], 0.5),
        ([(0.9, 10.0)] * 20, FARTHEST),
        ([(0.9, 12.0)] * 20, 1 / FARTHEST),
    ],
)
def test_the_rate_rises_after_slow_epochs_and_falls_near_the_budget(epochs, factor):
    """By the history alone; from the second epoch on, and within bounds."""
    assert learning_rate(history(*epochs), OPTIONS, 10.0) == pytest.approx(1e-4 * factor)


def test_the_papers_rate_is_constant():
    """The preset adapts nothing."""
    assert learning_rate(history(*[(0.9, 10.0)] * 9), Options.paper(), 10.0) == Options().learning_rate
