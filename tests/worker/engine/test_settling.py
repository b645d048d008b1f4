"""A distillation that meets the criterion goes on without pressing, where it did harm."""

import copy
import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch

from tests import support
from worker.engine import Options
from worker.engine.checkpoint import MOST_HARM, Checkpoint
from worker.engine.criterion import Judgement
from worker.engine.distil import Distiller
from worker.engine.errors import NoReference
from worker.engine.forget_set import ForgetSet
from worker.engine.measure import measure_before
from worker.engine.pace import settles
from worker.engine.prepare import prepare
from worker.engine.pressing import Pressed
from worker.engine.samples import OwnSamples
from worker.engine.schedule import KEEPING, Schedule, learning_rate
from worker.engine.unlearn import train
from worker.engine.utility import Watched
from worker.engine.variants import Variants

POLICY = dataclasses.replace(Options.from_mapping(support.POLICY), loss="distil", distil_steps=1, attacks={})
OPTIONS = dataclasses.replace(POLICY, distil_steps=20, max_epochs=12, max_neighbour_loss=0.03)


def settled(harms: list[float | None], monkeypatch, resume: Checkpoint | None = None):
    """The end of a run whose epochs did this harm, those of None missed the criterion; its points; who pressed.

    An epoch that follows one that met it, and does not press, has more steps, and what is kept weighs more.
    """
    trained, pressed, points, kept_more = [resume.epoch if resume else 0], [], [], []
    weight = torch.nn.Parameter(torch.zeros(1))
    adapter = SimpleNamespace(
        parameters=lambda: [weight],
        load=lambda state: None,
        state=lambda: {"factors": torch.tensor(trained[0])},
        rank=4,
    )
    reference = SimpleNamespace(calibration=lambda model: None, correct=lambda model: None, state=lambda count: {})

    def lost(model):
        return {"perplexity": 9.0, "neighbours_lost": harms[trained[0] - 1] or 0.0}

    def judged(self, *, may_end):
        trained[0] += 1
        return Judgement(0.0, 0.0, 0.0, 0.0, ()), harms[trained[0] - 1] is not None, set()

    monkeypatch.setattr(Distiller, "_judge", judged)
    monkeypatch.setattr(Distiller, "_lower", lambda *sets: set())
    monkeypatch.setattr(Distiller, "_step", lambda *sets: kept_more.append((trained[0] + 1, sets[-1])) or 1.0)
    monkeypatch.setattr(Distiller, "_pressed", lambda self, *sets: pressed.append(trained[0] + 1) or Pressed())
    nothing = Variants([], [], [], [])
    retain, watched = (
        SimpleNamespace(start_epoch=lambda epoch: None),
        SimpleNamespace(parent_perplexity=9.0, measure=lost),
    )
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=8))
    kept = (retain, OwnSamples([], []), watched, OPTIONS)
    sets = (ForgetSet([], []), [], [], reference, nothing, nothing, [], [], *kept)
    fractions: list[float] = []
    run = Distiller(model, adapter, *sets, lambda p: points.append(copy.deepcopy(p)), fractions.append)
    end = run.run(resume)
    assert {(round(entry["learning_rate"], 9), entry["rank"]) for entry in end.history[1:]} == {(0.4 / 8 / 10, 4)}
    for epoch in range(resume.epoch + 1 if resume else 1, end.epoch + 1):
        settling = epoch > 1 and epoch not in pressed
        weights = [weight for of, weight in kept_more if of == epoch]
        assert weights == (20 * [KEEPING] if settling else (5 if epoch > 1 else 20) * [1.0])
    assert fractions == sorted(fractions)
    assert fractions[-1] == (1.0 if end.epoch == OPTIONS.last_epoch else pytest.approx((15 + 5 * end.epoch) / 80))
    return end, points, pressed


def test_the_steps_of_an_epoch_and_how_far_they_bring_the_run():
    """Fixed steps first, twenty an epoch; then five that press, or twenty that settle and count as five."""
    options = dataclasses.replace(OPTIONS, distil_steps=30, max_epochs=3)
    met, missed = {"met": True}, {"met": False}
    passing = {"factors": torch.zeros(1)}
    points = [
        Checkpoint(),
        Checkpoint(epoch=1, history=[missed]),
        Checkpoint(epoch=2, history=[missed] * 2),
        Checkpoint(epoch=3, history=[missed, missed, met], passing=passing),
        Checkpoint(epoch=4, history=[missed, missed, met, missed], passing=passing),
    ]
    schedules = [Schedule.after(point, options) for point in points]
    assert schedules == [
        Schedule(range(20)),
        Schedule(range(20, 30)),
        Schedule(range(30, 35), presses=True),
        Schedule(range(35, 55), keeping=KEEPING),
        Schedule(range(40, 45), presses=True),
    ]
    ends = [schedule.done(schedule.steps[-1], options) for schedule in schedules]
    assert ends == pytest.approx([20 / 45, 30 / 45, 35 / 45, 40 / 45, 1.0])
    assert schedules[3].done(44, options) == pytest.approx(37.5 / 45)


@pytest.mark.parametrize(("given", "highest"), [(None, 0.4 / 8), (1e-3, 1e-3)])
def test_the_learning_rate_rises_and_falls_to_nothing(given, highest):
    """A tenth of the steps rise, the others fall; afterwards it is a tenth of the highest. Wider models take less."""
    options = dataclasses.replace(OPTIONS, distil_steps=99, distil_learning_rate=given)
    rates = [learning_rate(step, options, 8) / highest for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[9:99] == pytest.approx([step / 90 for step in range(90, 0, -1)])
    assert rates[99:] == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize(
    ("harms", "epochs", "factors", "pressed"),
    [
        ([None, 0.05, None, 0.02], 4, 4, [2, 4]),  # the first that keeps well within the limit
        ([None, 0.05, 0.03, 0.024], 4, 4, [2]),
        ([None, 0.05, 0.04, 0.06, 0.07, 0.08], 6, 3, [2]),  # none does: the least harm
        ([None, 0.02], 2, 2, [2]),
        ([None] * 13, 13, 13, [*range(2, 14)]),
        ([*[None] * 9, 0.028], 10, 10, [*range(2, 11)]),  # near the limit: too few epochs are left
        ([*[None] * 9, 0.05, 0.04, None, 0.025], 13, 13, [*range(2, 11), 13]),  # over it one suffices
        ([*[None] * 9, 0.05, 0.04, None, None], 13, 11, [*range(2, 11), 13]),
    ],
)
def test_a_run_goes_on_while_neighbours_lose_too_much(monkeypatch, harms, epochs, factors, pressed):
    """It presses on nothing then. Stopped after any epoch it goes on as if it had not been."""
    end, points, presses = settled(harms, monkeypatch)
    assert (end.met, end.epoch, end.adapter["factors"].item()) == (harms[factors - 1] is not None, epochs, factors)
    assert presses == pressed
    assert not any(point.met for point in points[:-1])
    for point in points[:-1]:
        resumed, _, rest = settled(harms, monkeypatch, copy.deepcopy(point))
        assert (resumed.met, resumed.epoch, resumed.adapter["factors"].item()) == (end.met, epochs, factors)
        assert rest == [epoch for epoch in pressed if epoch > point.epoch]


def test_a_run_whose_full_test_failed_presses_again(monkeypatch):
    """Its last epoch met the criterion in training; what passed there counts no more."""
    end, _, _ = settled([None, 0.02], monkeypatch)
    failed = SimpleNamespace(request=0, passed=False, el=0.5)
    after = SimpleNamespace(verdicts=[failed], el_limit=0.1)
    report = SimpleNamespace(after=after, per_record=[failed], earlier=[], reason="criterion_missed")
    reopened = end.reopen(report, OPTIONS.last_epoch)
    assert (reopened.passing, reopened.least_harm) == ({}, MOST_HARM)
    whole, _, pressed = settled([None, 0.02, 0.05, 0.02], monkeypatch, reopened)
    assert (whole.met, whole.epoch, pressed) == (True, 4, [3])


@pytest.mark.parametrize(
    ("last", "goes_on"),
    [
        ({"met": True, "perplexity": 10.5}, False),
        ({"met": True, "perplexity": 10.6}, True),  # over the budget
        ({"met": True, "perplexity": 9.0, "neighbours_lost": 0.025}, True),
        ({"met": False, "perplexity": 10.6, "neighbours_lost": 0.5}, False),
    ],
)
def test_a_run_settles_near_the_limit_of_neighbours_or_over_the_budget(last, goes_on):
    """Four times at most."""
    options = dataclasses.replace(OPTIONS, max_perplexity_ratio=1.05)
    assert settles([last], options, 10.0) is goes_on
    assert settles([last] * 4, options, 10.0) is goes_on
    assert not settles([last] * 5, options, 10.0)


def test_distillation_looks_at_neighbours_and_at_the_stricter_budget(memorised, monkeypatch):
    """Whether its policy adapts or not. Versions together may have taken more than the budget of one leaves."""
    model, tokenizer = memorised
    options = dataclasses.replace(POLICY, adaptive=False, max_perplexity_ratio=1.25, max_total_perplexity_ratio=1.5)
    data = prepare(tokenizer, support.KNOWN[:1], range(1), support.RETAIN, support.HELDOUT, options)
    watched = Watched.of_run(model, data, 9.0, options, [])
    assert watched.neighbours
    assert watched.measure(model)["neighbours_lost"] == pytest.approx(0.0, abs=1e-6)
    assert not Watched.of_run(model, data, 9.0, dataclasses.replace(options, loss="ihl"), []).neighbours
    baseline, given = measure_before(model, tokenizer, data, options), []
    baseline = dataclasses.replace(baseline, first_perplexity=baseline.quality.heldout_perplexity / 1.4)

    def distiller(*sets, **others):
        given.extend(sets)
        raise NoReference

    module = sys.modules["worker.engine.unlearn"]
    monkeypatch.setattr(module, "check_reference", lambda *sets: None)
    monkeypatch.setattr(module, "Distiller", distiller)
    with pytest.raises(NoReference):
        train(model, tokenizer, data, baseline, options, reference=copy.deepcopy(model))
    assert given[-1].max_perplexity_ratio == pytest.approx(1.5 / 1.4)
    assert given[-2].neighbours == watched.neighbours
