"""The learning rate that follows what the epochs have done."""

import pytest

from worker.engine import Options
from worker.engine.pace import FARTHEST, LONGEST, MOST_KEPT, MOST_REPAIRS, Pace, pace

OPTIONS = Options(learning_rate=1e-4, max_perplexity_ratio=1.1)


def history(*epochs: tuple[float, float]) -> list[dict[str, float]]:
    """Epochs of (MA, perplexity), with a limit of 0.3."""
    return [{"ma": ma, "ma_limit": 0.3, "perplexity": value} for ma, value in epochs]


@pytest.mark.parametrize(
    ("epochs", "factor"),
    [
        ([], 1),
        ([(0.9, 10.0)], 1),
        ([(0.9, 10.9)], 1),  # the next one keeps
        ([(0.9, 10.9), (0.9, 10.9)], 0.5),
        ([(0.9, 10.0), (0.7, 10.0)], 1),  # a third of the way
        ([(0.9, 10.0), (0.88, 10.0)], 2),
        ([(0.9, 10.0), (0.88, 10.0), (0.87, 10.0), (0.6, 10.0)], 4),
        ([(0.9, 10.0), (0.91, 10.9)], 1),  # slow, and near the budget
        ([(0.9, 10.0), (0.5, 10.79)], 1),
        ([(0.9, 10.0), (0.5, 10.81), (0.4, 10.5)], 1),
        ([(0.9, 10.0), (0.5, 10.81), (0.4, 10.81)], 0.5),
        ([(0.9, 10.0)] * 20, FARTHEST),
        ([(0.9, 10.9)] * 20, 1 / FARTHEST),
    ],
)
def test_the_rate_rises_after_slow_epochs_and_falls_near_the_budget(epochs, factor):
    """By the history alone; from the second epoch on, and within bounds."""
    assert pace(history(*epochs), OPTIONS, 10.0).rate == pytest.approx(1e-4 * factor)


@pytest.mark.parametrize(("loss", "factor"), [("ihl", 2), ("gd", 0.5)])
def test_the_rate_falls_near_the_neighbours_limit_where_nothing_is_repaired(loss, factor):
    """Four fifths of 0.03 nats a token."""
    first, second = history((0.9, 10.0), (0.88, 10.0))
    options = Options(learning_rate=1e-4, max_perplexity_ratio=1.1, loss=loss)
    assert pace([first, {**second, "neighbours_lost": 0.025}], options, 10.0).rate == pytest.approx(1e-4 * factor)
    assert pace([first, {**second, "neighbours_lost": 0.023}], options, 10.0).rate == pytest.approx(2e-4)


def test_the_papers_rate_is_constant():
    """The preset adapts nothing."""
    assert pace(history(*[(0.9, 10.0)] * 9), Options.paper(), 10.0) == Pace(Options().learning_rate, 1)


@pytest.mark.parametrize(("slow", "longer"), [(5, 1), (6, 2), (7, 4), (20, LONGEST)])
def test_epochs_become_longer_once_the_rate_cannot_rise(slow, longer):
    """Four slow epochs bring the rate to its highest; each further one doubles the steps."""
    assert pace(history(*[(0.9, 10.0)] * slow), OPTIONS, 10.0) == Pace(pytest.approx(1e-4 * FARTHEST), longer)


def test_epochs_are_short_again_once_the_rate_has_fallen():
    """It is no longer the highest."""
    slow = [*history(*[(0.9, 10.0)] * 7), met(perplexity=11.5)]
    assert pace([*slow, *history((0.5, 10.0))], OPTIONS, 10.0) == Pace(pytest.approx(1e-4 * FARTHEST / 2), 1)


def test_an_epoch_over_the_budget_is_mended_by_one_that_keeps():
    """The rate stays where that suffices, and falls if not. No two in a row keep while the criterion is missed."""
    epochs = history((0.9, 10.0), (0.6, 11.5))
    assert pace(epochs, OPTIONS, 10.0) == Pace(pytest.approx(1e-4), 1, keeps=True)
    mended, not_mended = history((0.61, 10.5), (0.61, 11.2))
    assert pace([*epochs, mended], OPTIONS, 10.0) == Pace(pytest.approx(1e-4), 1)
    assert pace([*epochs, not_mended], OPTIONS, 10.0) == Pace(pytest.approx(0.5e-4), 1)
    assert pace([*epochs, not_mended, *history((0.5, 11.2))], OPTIONS, 10.0) == Pace(
        pytest.approx(0.5e-4), 1, keeps=True
    )


@pytest.mark.parametrize("options", [Options(loss="gd"), Options.paper()])
def test_where_nothing_holds_the_parent_nothing_keeps(options):
    """There is nothing to train on but retain text, and no samples of the parent."""
    for last in (*history((0.6, 30.0)), met(perplexity=30.0)):
        assert not pace([*history((0.9, 10.0)), last], options, 10.0).keeps


@pytest.mark.parametrize("left", [1, 2])
def test_the_last_epoch_is_not_spent_on_keeping_while_the_criterion_is_missed(left):
    """What it brought back could not be forgotten again."""
    options = Options(learning_rate=1e-4, max_perplexity_ratio=1.1, max_epochs=2 + left)
    assert pace(history((0.9, 10.0), (0.6, 11.5)), options, 10.0) == Pace(
        pytest.approx(1e-4 if left == 2 else 0.5e-4), 1, keeps=left == 2
    )


@pytest.mark.parametrize(("ma", "perplexity", "keeps"), [(0.45, 10.9, True), (0.39, 10.9, False), (0.39, 11.1, True)])
def test_close_to_the_criterion_nothing_is_brought_back_that_is_within_the_budget(ma, perplexity, keeps):
    """The rate falls instead; over the budget there is no choice."""
    rate = pytest.approx(1e-4 if keeps else 0.5e-4)
    assert pace(history((0.9, 10.0), (ma, perplexity)), OPTIONS, 10.0) == Pace(rate, 1, keeps=keeps)


def test_the_rate_of_repairs_falls_also_if_one_lost_the_criterion():
    """Near the budget, so that an epoch keeps before it is forgotten again."""
    first = met(samples_lost=0.5)
    lost = {**history((0.5, 10.9))[0], "repairs": True}
    assert pace([first, lost], OPTIONS, 10.0) == Pace(pytest.approx(0.5e-4), 1, keeps=True)
    assert pace([first, lost, *history((0.5, 10.0)), first], OPTIONS, 10.0).rate == pytest.approx(0.5e-4)


def test_the_rate_falls_once_if_the_criterion_is_first_met_by_an_epoch_that_keeps():
    """EL may pass only then."""
    epochs = [*history((0.9, 10.0), (0.6, 11.5)), met(perplexity=11.2)]
    for _ in range(MOST_KEPT - 1):
        assert pace(epochs, OPTIONS, 10.0) == Pace(pytest.approx(0.5e-4), 1, keeps=True)
        epochs.append(met(perplexity=11.2))
    assert not pace(epochs, OPTIONS, 10.0).keeps


def test_what_met_the_criterion_near_the_budget_is_at_its_end():
    """It is within it; nothing has to be mended."""
    assert pace([*history((0.9, 10.0)), met(perplexity=10.9)], OPTIONS, 10.0) == Pace(pytest.approx(0.5e-4), 1)


def met(**values: float) -> dict[str, float]:
    """An epoch that met the criterion."""
    return {**history((0.3, 10.0))[0], "met": True, **values}


def test_what_met_the_criterion_over_the_budget_is_mended_before_it_is_repaired():
    """The rate falls once. Four epochs keep at the most, while the criterion holds; then it is repaired, or the end."""
    over, epochs = met(samples_lost=0.5, perplexity=11.5), history((0.9, 10.0), (0.5, 10.0))
    for _ in range(MOST_KEPT):
        epochs.append(over)
        assert pace(epochs, OPTIONS, 10.0) == Pace(pytest.approx(0.5e-4), 1, keeps=True)
    assert pace([*epochs, met(samples_lost=0.5)], OPTIONS, 10.0).repairs
    for last in (met(), over, *history((0.4, 10.0))):  # of these the first two are the end
        assert pace([*epochs, last], OPTIONS, 10.0) == Pace(pytest.approx(0.5e-4), 1)
    lost_again = history((0.31, 11.2))
    assert pace([*epochs[:3], *lost_again], OPTIONS, 10.0) == Pace(pytest.approx(0.25e-4), 1)


@pytest.mark.parametrize(
    ("last", "options", "repairs"),
    [
        (met(), OPTIONS, False),
        (met(neighbours_lost=0.025), OPTIONS, True),
        (met(neighbours_lost=0.02, samples_lost=0.025), OPTIONS, True),
        (met(samples_lost=0.024), OPTIONS, False),  # four fifths of 0.03
        (met(samples_lost=0.5) | {"met": False}, OPTIONS, False),
        (met(samples_lost=0.5), Options(max_epochs=2 * MOST_REPAIRS), False),
        (met(samples_lost=0.5), Options(max_epochs=2 * MOST_REPAIRS + 1), True),
        (met(neighbours_lost=0.03), Options(max_epochs=2 * MOST_REPAIRS), False),
        (met(neighbours_lost=0.031), Options(max_epochs=2), False),
        (met(neighbours_lost=0.031), Options(max_epochs=3), True),  # over the limit: else nothing is published
        (met(samples_lost=0.5), Options.paper(), False),
        (met(neighbours_lost=0.5), Options(loss="gd"), False),  # nothing holds it near its parent
    ],
)
def test_an_epoch_repairs_what_the_criterion_cost(last, options, repairs):
    """Only after the criterion is met, where something was lost, and with epochs left to forget it again."""
    assert pace([last], options, 10.0).repairs is repairs


def test_where_neighbours_are_over_their_limit_repairs_go_on_to_the_last_epochs():
    """Each repair lost the criterion here; with two epochs left another one follows, and with one left none."""
    over, repaired = met(neighbours_lost=0.5), {**history((0.31, 10.0))[0], "repairs": True}
    for left, repairs in ((2, True), (1, False)):
        assert pace([over, repaired, over], Options(max_epochs=3 + left), 10.0).repairs is repairs
        within = met(samples_lost=0.5)
        assert not pace([within, repaired, within], Options(max_epochs=3 + left), 10.0).repairs


def test_repairs_take_ever_smaller_steps_and_come_to_an_end():
    """Where the rate has not risen, the first one has it, each further one half of it; there are four."""
    epochs, rates = [met(samples_lost=0.5)], []
    while (following := pace(epochs, OPTIONS, 10.0)).repairs:
        assert following.longer == 1
        rates.append(following.rate / 1e-4)
        epochs.append(met(samples_lost=0.5, repairs=True))
    assert rates == pytest.approx([1, 0.5, 0.25, 0.125])


def test_repairs_are_gentle_where_the_rate_has_risen():
    """A quarter of a rate eight times the first; less than the first only where the rate fell below it."""
    slow = history(*[(0.9, 10.0)] * 4)
    rates = []
    for repairs in range(4):
        repaired = [met(samples_lost=0.5, repairs=True, ma=0.9)] * repairs
        rates.append(pace([*slow, *repaired, met(samples_lost=0.5)], OPTIONS, 10.0).rate / 1e-4)
    assert rates == pytest.approx([2, 1, 1, 1])
