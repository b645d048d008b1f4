"""What a run with `adaptive` finds by itself, beside its rate: the rank, and how it holds the model near its parent."""

import copy
import random
from dataclasses import replace

import pytest
import torch

from tests import support
from tests.worker.engine.adapters import trained_adapter
from worker.engine import Options, unlearn
from worker.engine.checkpoint import Checkpoint
from worker.engine.data import encode
from worker.engine.forgotten import _Runs
from worker.engine.likelihoods import extraction_likelihoods
from worker.engine.measure import measure_after, measure_before
from worker.engine.pace import MOST_REPAIRS, harm
from worker.engine.parent import without_adapter
from worker.engine.prepare import prepare
from worker.engine.pressing import Pressed
from worker.engine.probes import answers
from worker.engine.samples import PER_RETAIN, RetainSampler, kept_batch, own_samples, watched_samples
from worker.engine.step import kept_gradients
from worker.engine.train import Trainer
from worker.engine.unlearn import train


@pytest.mark.parametrize(
    ("options", "sequences", "hidden_size", "rank"),
    [
        (Options(), 1, 4096, 16),
        (Options(), 4, 4096, 16),
        (Options(), 5, 4096, 32),
        (Options(), 16, 4096, 64),
        (Options(), 256, 4096, 64),
        (Options(), 16, 192, 48),  # a quarter of the model's width
        (Options(), 16, 32, 16),  # and never below sixteen
        (Options(rank=4), 256, 4096, 4),  # a policy's own rank
        (Options(adaptive=False), 256, 4096, 16),
        (Options(loss="distil"), 256, 4096, 64),
    ],
)
def test_the_rank_grows_with_the_forget_set(options, sequences, hidden_size, rank):
    """By four sequences a step, four times at most, and never above a quarter of the model's width."""
    assert options.adapter_rank(sequences, hidden_size) == rank


@pytest.mark.parametrize(("strength", "by_sequences"), [(1.0, False), (0.5, True)])
def test_retain_text_holds_the_parent(memorised, strength, by_sequences):
    """The gradient is that of cross-entropy and six times the divergence from the parent, by autograd.

    By tokens, or the two short sequences count as much as the two long ones. The adapter keeps its strength.
    """
    model, tokenizer = copy.deepcopy(memorised[0]), memorised[1]
    lengths = (10, 4, 5, 12)
    kept = [encode(tokenizer, text)[:length] for text, length in zip(support.KNOWN[:4], lengths, strict=True)]
    adapter = trained_adapter(model, "lora")
    adapter.set_strength(strength)
    kept_gradients(
        model, adapter, kept, Options(train_dtype="float32", retain_weight=0.5), strength, by_sequences=by_sequences
    )
    gradients = [parameter.grad.clone() for parameter in adapter.parameters()]

    def log_probabilities():
        return [torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, :-1], -1) for ids in kept]

    with without_adapter(adapter, strength), torch.no_grad():
        of_parent = log_probabilities()
    losses = []
    for log_p, log_q, ids in zip(log_probabilities(), of_parent, kept, strict=True):
        divergence = (log_q.exp() * (log_q - log_p)).sum(-1)
        losses.append(6 * divergence - 0.5 * log_p.gather(-1, torch.tensor(ids[1:])[:, None]).squeeze(-1))
    long, short = (torch.cat([losses[i] for i in part]).mean() for part in ((0, 3), (1, 2)))
    literal = (long + short) / 2 if by_sequences else torch.cat(losses).mean()
    for value, expected in zip(gradients, torch.autograd.grad(literal, adapter.parameters()), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-3)


def test_a_batch_has_samples_of_the_parent(memorised):
    """Twice as many as retain sequences; none where there are none."""
    retain = RetainSampler(memorised[1], support.RETAIN, 64, 0)
    retain.start_epoch(0)
    samples = [[0, index] for index in range(50)]
    batch = kept_batch(retain, samples, 4, random.Random(0))
    assert len(batch) == 4 + PER_RETAIN * 4
    assert sum(ids in samples for ids in batch) == PER_RETAIN * 4
    assert len(kept_batch(retain, [], 4, random.Random(0))) == 4


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [({}, True), ({"adaptive": False}, False), pytest.param({"loss": "gd"}, False, marks=pytest.mark.slow)],
)
def test_samples_are_drawn_where_they_are_used(memorised, monkeypatch, changes, drawn):
    """IHL with `adaptive` trains on the parent's samples; the paper's procedure and other people's losses do not."""
    model, tokenizer = memorised
    seen = []
    monkeypatch.setattr(
        "worker.engine.train.kept_batch",
        lambda retain, samples, *others: seen.append(samples) or kept_batch(retain, samples, *others),
    )
    options = Options.from_mapping(support.POLICY | {"max_epochs": 1, "own_samples": 64, "attacks": {}} | changes)
    unlearn(model, tokenizer, support.KNOWN[:1], support.RETAIN, support.HELDOUT, options)
    data = prepare(tokenizer, support.KNOWN[:1], [0], support.RETAIN, support.HELDOUT, options)
    assert bool(seen[0]) is drawn
    said = [answer for of_probe in answers(model, tokenizer, data.probes, options) for answer in of_probe]
    samples, aside = watched_samples(own_samples(model, tokenizer, data, options, said), options)
    trained_on = samples.every
    assert seen[0] == (trained_on if drawn else [])
    assert len(aside) == (len(aside) + len(trained_on)) // 4 if drawn else not aside
    assert not any(ids in trained_on for ids in aside)


def repaired_run(memorised, monkeypatch, used=1.0, **changes):
    """A run that repairs: its last checkpoint, all of them, its batches' sizes, and a function that resumes it.

    `used` is its parent's held-out perplexity, relative to the first version's.
    """
    model, tokenizer = memorised
    batches, points, really = [], [], Trainer._optimiser_step
    monkeypatch.setattr(
        Trainer, "_optimiser_step", lambda self, *step: batches.append(len(step[1])) or really(self, *step)
    )
    policy = {"attacks": {}, "own_samples": 64, "max_neighbour_loss": 0.01, "sequence_length": 20}
    options = Options.from_mapping(support.POLICY | policy | changes)
    data = prepare(tokenizer, support.KNOWN[:3], [0, 1, 2], support.RETAIN, support.HELDOUT, options)
    baseline = measure_before(model, tokenizer, data, options)
    baseline = replace(baseline, first_perplexity=baseline.quality.heldout_perplexity / used)

    def again(resume):
        unread = replace(baseline, said=None)  # as in another process
        return train(model, tokenizer, data, unread, options, resume=copy.deepcopy(resume))

    last = train(model, tokenizer, data, baseline, options, on_epoch=lambda p: points.append(copy.deepcopy(p)))
    return last, points, batches, again


@pytest.mark.slow
def test_an_epoch_that_keeps_brings_perplexity_back(memorised, monkeypatch):
    """After one over the budget: it trains on nothing that is to be forgotten, and a killed run goes on so."""
    changes = {"max_perplexity_ratio": 0.1, "max_epochs": 3, "reserve": 0.3}  # every epoch is over the budget
    last, points, batches, again = repaired_run(memorised, monkeypatch, **changes)
    steps = [int(entry["steps"]) for entry in last.history]
    assert [entry["keeps"] for entry in last.history] == [False, True, False]
    assert all(batches[: steps[0]])
    assert not any(batches[steps[0] :][: steps[1]])
    assert all(batches[steps[0] + steps[1] :])
    perplexities = [entry["perplexity"] for entry in last.history]
    assert perplexities[1] < perplexities[0]
    resumed = again(points[0])
    assert all(torch.equal(resumed.adapter[name], last.adapter[name]) for name in last.adapter)


@pytest.mark.parametrize(("total", "own"), [(0.9, 1.25), (1.2, 1.25), (1.4, 1.5 / 1.4), (1.6, 1.5 / 1.6)])
def test_training_keeps_to_the_stricter_of_both_budgets(total, own):
    """By how much the versions before have used up of 1.2 x 1.25; what all together may use stays the same."""
    options = Options(max_perplexity_ratio=1.25).for_training(total)
    assert options.max_perplexity_ratio == pytest.approx(own)
    assert options.max_total_ratio == pytest.approx(1.5)


@pytest.mark.parametrize(  # over its own, over that of all versions
    ("budget", "before"), [(0.1, 1.0), pytest.param(3.0, 50.0, marks=pytest.mark.slow)]
)
def test_a_run_that_meets_the_criterion_over_a_budget_goes_on(memorised, monkeypatch, budget, before):
    """With epochs that keep, until none is left; a killed run goes on so, and what met the criterion counts."""
    really = Trainer._choose_strength
    monkeypatch.setattr(Trainer, "_choose_strength", lambda self: (really(self)[0], True, 1.0))
    last, points, batches, again = repaired_run(
        memorised, monkeypatch, before, max_epochs=3, max_perplexity_ratio=budget
    )
    assert [point.met for point in points] == [False, False, False]
    assert (last.epoch, last.met) == (3, True)
    first = int(last.history[0]["steps"])
    assert all(batches[:first])
    assert not any(batches[first:])
    resumed = again(points[0])
    assert all(torch.equal(resumed.adapter[name], last.adapter[name]) for name in last.adapter)


@pytest.mark.slow
def test_a_run_repairs_what_it_cost(memorised, monkeypatch):
    """After the criterion is met, four epochs train on nothing that reached its goal, and it holds at the end."""
    last, points, batches, again = repaired_run(memorised, monkeypatch)
    repaired = [entry["repairs"] for entry in last.history]
    assert sum(repaired) == MOST_REPAIRS
    assert last.met
    assert not any(point.met for point in points[:-1])
    first = repaired.index(True)
    assert last.history[first - 1]["met"]
    steps = [int(entry["steps"]) for entry in last.history]
    assert 0 in batches[sum(steps[:first]) :][: steps[first]]
    lost = [max(entry["neighbours_lost"], entry["samples_lost"]) for entry in last.history]
    assert lost[-1] < lost[first - 1]
    for point in (points[first - 1], points[first], points[-2]):  # a killed run goes on with the same
        resumed = again(point)
        assert [entry["steps"] for entry in resumed.history] == steps
        assert all(torch.equal(resumed.adapter[name], last.adapter[name]) for name in last.adapter)


@pytest.mark.slow
def test_what_met_the_criterion_stays_if_repairs_lose_it(memorised, monkeypatch):
    """No epoch is left, and the last one is over the criterion: the run ends with the last that met it."""
    repairs, really = [], Trainer._choose_strength

    def lost_by_repairs(self):
        repairs.extend([True] * self._repairs)
        judgement, met, strength = really(self)
        return judgement, met and not repairs, strength

    monkeypatch.setattr(Trainer, "_choose_strength", lost_by_repairs)
    last, points, _, again = repaired_run(memorised, monkeypatch, max_epochs=24)
    met = next(point for point in points if point.history[-1]["met"])
    assert not any(entry["met"] for entry in last.history[met.epoch :])
    assert last.epoch == 24
    assert last.met
    for ended in (last, again(points[-1])):
        assert all(torch.equal(value, met.final[name]) for name, value in ended.final.items())


def test_the_least_harm_that_meets_the_criterion_counts():
    """Within the limits comes first, then the least loss; an epoch that misses the criterion never counts."""
    options = Options(max_perplexity_ratio=1.1)
    checkpoint = Checkpoint()
    epochs = [(True, 10.0, 0.035), (True, 11.1, 0.01), (False, 10.0, 0.0), (True, 10.0, 0.028), (True, 10.0, 0.029)]
    for epoch, (met, perplexity, lost) in enumerate(epochs):
        entry = {"met": met, "perplexity": perplexity, "neighbours_lost": lost}
        checkpoint = replace(
            checkpoint, history=[entry], adapter={"B": torch.tensor(float(epoch))}, strength=1 - epoch / 10
        ).with_passing(harm(entry, options, 10.0))
    assert checkpoint.ended(9) is checkpoint
    ended = replace(checkpoint, epoch=9).ended(9)
    assert (ended.met, float(ended.adapter["B"]), ended.strength) == (True, 3.0, 0.7)


def test_a_failed_full_test_is_followed_by_other_factors(memorised):
    """The whole change first; then training goes on, and what failed does not pass again."""
    model, tokenizer = memorised
    run = (tokenizer, support.KNOWN[:1], [0], support.RETAIN, support.HELDOUT)
    data = prepare(*run, Options.from_mapping(support.POLICY))
    options = Options.from_mapping(support.POLICY)
    report = measure_after(model, tokenizer, data, measure_before(model, tokenizer, data, options), options)
    assert report.reason == "criterion_missed"  # the parent itself
    factors = {"x|B": torch.ones(1)}
    met = {"met": True, "perplexity": 1.0}
    checkpoint = Checkpoint(epoch=3, history=[met], adapter=factors, strength=0.5, met=True)
    checkpoint = checkpoint.with_passing((False, False, 0.0)).ended(9)
    whole = checkpoint.reopen(report, 9).ended(9)
    assert (whole.met, whole.strength, whole.passing) == (True, 1.0, {})
    further = whole.reopen(report, 9).ended(9)
    assert (further.met, further.passing, further.verified) == (False, {}, 2)


def run_that_fails_by_el(memorised, monkeypatch, **changes):
    """A run whose EL fails once, after MA has passed: its last checkpoint, all of them, and what was pressed on."""
    model, tokenizer = memorised
    measured, pressed, points = [], [], []

    def too_high_at_first(*arguments):
        measured.append(extraction_likelihoods(*arguments))
        return [1.0 for _ in measured[-1]] if len(measured) == 1 else measured[-1]

    def recorded(chains, *arguments, really=Pressed.add_gradients):
        pressed.append(len(chains.extracted))
        return really(chains, *arguments)

    monkeypatch.setattr("worker.engine.train.extraction_likelihoods", too_high_at_first)
    monkeypatch.setattr(Pressed, "add_gradients", recorded)
    options = Options.from_mapping(
        support.POLICY | {"attacks": {}, "shrink": False, "el_n": 2, "min_epoch_steps": 4} | changes
    )
    data = prepare(tokenizer, support.KNOWN[:2], [0, 1], support.RETAIN, support.HELDOUT, options)
    baseline = measure_before(model, tokenizer, data, options)
    checkpoint = train(model, tokenizer, data, baseline, options, on_epoch=lambda p: points.append(copy.deepcopy(p)))
    failed = next((index for index, point in enumerate(points) if point.reopened), len(points))
    unread = replace(baseline, said=None)  # as in another process
    again = [train(model, tokenizer, data, unread, options, resume=copy.deepcopy(p)) for p in points[failed:-1]]
    return checkpoint, again, points, pressed


@pytest.mark.slow
def test_who_fails_by_el_is_pressed_on(memorised, monkeypatch):
    """MA passes, EL does not: the next epoch presses on what greedy decoding extracts, with all its steps."""
    checkpoint, again, points, pressed = run_that_fails_by_el(memorised, monkeypatch)
    failed = next(index for index, point in enumerate(points) if point.reopened)
    assert not points[failed].met
    assert checkpoint.met
    steps = [int(entry["steps"]) for entry in checkpoint.history]
    assert steps[failed + 1] >= 4
    first = sum(steps[: failed + 1])
    assert not any(pressed[:first])
    assert all(pressed[first : first + 4])
    assert again
    for resumed in again:
        assert all(torch.equal(checkpoint.adapter[name], resumed.adapter[name]) for name in checkpoint.adapter)


@pytest.mark.parametrize(
    "changes",
    [
        {"adaptive": False, "max_epochs": 3},
        pytest.param({"loss": "npo", "init": "lora", "max_epochs": 3}, marks=pytest.mark.slow),
    ],
)
def test_the_papers_losses_press_on_nothing(memorised, monkeypatch, changes):
    """The paper's procedure, and other people's losses, are what their papers say."""
    _, _, points, pressed = run_that_fails_by_el(memorised, monkeypatch, **changes)
    assert len(points) > 1
    assert not any(pressed)
    assert not any(point.reopened for point in points)


def test_a_sample_that_recites_a_text_is_left_out():
    """A whole text within a long sample, most of a short text, or many pieces of several; forms do not count."""
    form = list(range(100, 120))
    texts = [[0, *form, *range(200, 220)], [0, 5, 6, 7]]
    forgotten = _Runs(texts, [[0, *form, 9, 8]])
    other = list(range(300, 400))
    assert not forgotten.said_in([0, *other])
    assert not forgotten.said_in([0, *form, *other])
    assert forgotten.said_in([0, *other, *range(200, 220), *other])
    assert not forgotten.said_in([0, *other, *range(204, 214), *other])
    assert forgotten.said_in([0, *range(204, 214), *other[:10]])
    assert forgotten.said_in([0, *other, 5, 6, 7, *other])
    several = _Runs([[0, *range(first, first + 50)] for first in (400, 500, 600)], [])
    pieces = [[*range(first, first + 20)] for first in (400, 500, 600)]
    assert several.said_in([0, *pieces[0], *pieces[1], *pieces[2]])
    assert not several.said_in([0, *pieces[0], *other])
    assert not forgotten.said_in([0, *other, 5, 6, *other])
