"""The learning rate that follows what the epochs have done."""

import pytest

from worker.engine import Options
from worker.engine.pace import FARTHEST, LONGEST, Pace, pace

OPTIONS = Options(learning_rate=1e-4, max_perplexity_ratio=1.1)


def history(*epochs: tuple[float, float]) -> list[dict[str, float]]:
    """Epochs of (MA, perplexity), with a limit of 0.3."""
    return [{"ma": ma, "ma_limit": 0.3, "perplexity": value} for ma, value in epochs]


@pytest.mark.parametrize(
    ("epochs", "factor"),
    [
        ([], 1),
        ([(0.9, 10.0)], 1),
        ([(0.9, 10.9)], 0.5),
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
    assert pace(history(*epochs), OPTIONS, 10.0).rate == pytest.approx(1e-4 * factor)


@pytest.mark.parametrize(("lost", "factor"), [(0.02, 2), (0.025, 0.5), (-0.5, 2)])
def test_the_rate_falls_where_neighbours_are_near_their_limit(lost, factor):
    """Four fifths of 0.03 nats a token; a gain lets it rise."""
    first, second = history((0.9, 10.0), (0.88, 10.0))
    epochs = [first, {**second, "neighbours_lost": lost}]
    assert pace(epochs, OPTIONS, 10.0).rate == pytest.approx(1e-4 * factor)
    assert pace(epochs[1:], OPTIONS, 10.0).rate == pytest.approx(1e-4 * min(factor, 1))  # after a first epoch


def test_the_papers_rate_is_constant():
    """The preset adapts nothing."""
    assert pace(history(*[(0.9, 10.0)] * 9), Options.paper(), 10.0) == Pace(Options().learning_rate, 1)


@pytest.mark.parametrize(("slow", "longer"), [(5, 1), (6, 2), (7, 4), (20, LONGEST)])
def test_epochs_become_longer_once_the_rate_cannot_rise(slow, longer):
    """Four slow epochs bring the rate to its highest; each further one doubles the steps."""
    assert pace(history(*[(0.9, 10.0)] * slow), OPTIONS, 10.0) == Pace(pytest.approx(1e-4 * FARTHEST), longer)
