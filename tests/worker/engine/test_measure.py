"""The budgets of utility, of one run and of all runs together; and what attacks that block need."""

import json
from dataclasses import replace

import pytest

from service.domain.reference_texts import few_warning
from tests import support
from worker.engine import verdicts
from worker.engine.attacks import ATTACKS, TWO_SIDED, Subject, unseen_needed
from worker.engine.attacks.scores import LEVEL, AttackResult, Scores, least_unseen
from worker.engine.baseline import Baseline
from worker.engine.checkpoint import Checkpoint
from worker.engine.criterion import judge
from worker.engine.errors import HeldoutTooFew
from worker.engine.measure import blocked_by, measure_after, measure_before, with_samples
from worker.engine.options import Options
from worker.engine.prepare import prepare
from worker.engine.probes import Answer
from worker.engine.progress import Progress

OPTIONS = Options(sequence_length=32, heldout_sequences=20, utility_sequences=4, max_perplexity_ratio=1.25)


@pytest.fixture(scope="module")
def measured():
    """(model, tokenizer, the sets of a run, its baseline): a random model and a text that it has not memorised."""
    model, tokenizer = support.random_model("gpt_neox", gain=1.0), support.train_tokenizer(support.KNOWN)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    data = prepare(tokenizer, support.people(1, seed=5), [0], support.RETAIN, support.HELDOUT, OPTIONS)
    return model, tokenizer, data, measure_before(model, tokenizer, data, OPTIONS)


@pytest.mark.parametrize(
    ("compounded", "given", "expected"),
    [
        (1.25**2, None, "total_utility_budget_exceeded"),
        (1.49, None, None),
        pytest.param(1.49, 1.4, "total_utility_budget_exceeded", marks=pytest.mark.slow),
        (1.25**2, 1.6, None),
    ],
)
def test_runs_within_their_own_budgets_are_over_the_budget_of_all(measured, compounded, given, expected):
    """Two runs at 1.25 compound to 1.56: over the default of 1.5, within a budget of 1.6 that a policy names."""
    model, tokenizer, data, baseline = measured
    options = replace(OPTIONS, max_total_perplexity_ratio=given)
    first = baseline.quality.heldout_perplexity / compounded
    later = measure_before(model, tokenizer, data, options, first_perplexity=first)
    report = measure_after(model, tokenizer, data, later, options)
    utility = report.utility
    assert (utility.heldout_ratio, utility.within_budget) == (1.0, True)
    assert (utility.first_heldout_perplexity, utility.total_ratio) == (first, pytest.approx(compounded))
    assert (report.reason, utility.within_total_budget) == (expected, expected is None)


def test_the_first_run_is_measured_against_itself(measured):
    """Both ratios are one number then; a baseline that was written to a file is read again as it was."""
    model, tokenizer, data, baseline = measured
    assert baseline.first_perplexity == baseline.quality.heldout_perplexity
    assert Baseline.from_dict(baseline.as_dict()) == replace(baseline, said=None)
    said = replace(baseline, said=[Answer([471147, 1], 1)])
    assert "471147" not in json.dumps(said.as_dict())
    utility = measure_after(model, tokenizer, data, baseline, OPTIONS).utility
    assert utility.total_ratio == utility.heldout_ratio
    assert utility.max_total_ratio == 1.5


def test_what_the_parent_says_is_drawn_once(measured):
    """By its own seed, whatever was drawn before; no file has it."""
    model, tokenizer, data, baseline = measured
    options, fractions = replace(OPTIONS, own_samples=8), list[float]()
    drawn = with_samples(model, tokenizer, data, baseline, options, lambda _, fraction: fractions.append(fraction))
    assert drawn.samples
    assert drawn.samples.every
    assert fractions[-1] == 0.5  # the factors come after it
    assert with_samples(model, tokenizer, data, drawn, options) is drawn
    assert with_samples(model, tokenizer, data, baseline, options) == drawn
    assert drawn.as_dict() == baseline.as_dict()
    assert str(drawn.samples.every[0]) not in repr(drawn)


def test_who_is_known_by_a_probe_alone_is_not_held_fast_by_samples(measured, monkeypatch):
    """Samples that name her would be kept, while the run presses on her answer."""
    model, tokenizer, _, _ = measured
    data = prepare(tokenizer, support.people(2, seed=5), [0, 1], support.RETAIN, support.HELDOUT, OPTIONS)
    baseline = measure_before(model, tokenizer, data, OPTIONS)
    verdicts = tuple(replace(v, looks_unseen=v.request == 1) for v in baseline.before.verdicts)
    baseline = replace(baseline, before=replace(baseline.before, verdicts=verdicts), answered=[1], said=[])
    given: list[list[int]] = []
    monkeypatch.setitem(
        with_samples.__globals__,
        "own_samples",
        lambda model, tokenizer, data, *rest: given.append(data.forget.requests),
    )
    with_samples(model, tokenizer, data, baseline, OPTIONS)
    assert (baseline.counted, given) == ([0], [[0, 1]])


def result(passed: bool | None, why: str | None = None) -> AttackResult:
    """What an attack found, or why it was not run."""
    return AttackResult("exposure", "NOT_RUN" if passed is None else "RUN", why, passed=passed)


@pytest.mark.parametrize(
    ("found_by", "reason"),
    [
        (result(True), None),
        (result(False), "attack_succeeded"),
        (result(None, "too_few_unseen_texts"), "attack_not_run"),
        (result(None, "could_not_be_run"), "attack_not_run"),
        (result(None, "not_applicable"), None),
    ],
)
def test_an_attack_blocks_unless_it_was_run_and_failed(found_by, reason):
    """An attack that reports blocks nothing; one that does not apply to these texts needs no run."""
    assert blocked_by([found_by], {"exposure": "block"}) == reason
    assert blocked_by([found_by], {"exposure": "report"}) is None


@pytest.mark.parametrize(
    ("effect", "requests"), [("block", 1), ("report", 1), pytest.param("block", 3, marks=pytest.mark.slow)]
)
def test_an_attack_that_blocks_compares_with_more_of_the_file_if_it_needs_more(measured, monkeypatch, effect, requests):
    """Beside three requests it does not. It never compares with what a reference learns, or the parent knows."""
    model, tokenizer, _, _ = measured
    options = replace(OPTIONS, loss="distil", attacks={"membership_loss": effect, "sampled": "report"})
    texts = support.people(requests, seed=5)
    data = prepare(tokenizer, texts, range(requests), support.RETAIN, support.people(200, seed=8), options)
    baseline = measure_before(model, tokenizer, data, options)
    known = [data.threshold_sequences[0], data.utility[0], data.spare[0]] if data.spare else []
    verdicts = tuple(replace(verdict, looks_unseen=False) for verdict in baseline.before.verdicts)
    baseline = replace(baseline, before=replace(baseline.before, verdicts=verdicts), known_heldout=known)
    seen: list[Subject] = []

    def look(subject: Subject, progress: Progress) -> Scores:
        seen.append(subject)
        return Scores([], [])

    monkeypatch.setitem(ATTACKS, "membership_loss", look)
    measure_after(model, tokenizer, data, baseline, options)
    if (effect, requests) == ("report", 1):
        assert (seen, data.spare) == ([], [])  # with so few texts it is not made
        return
    (subject,) = seen
    compared = {tuple(ids) for ids in subject.unseen}
    uses = {name: {tuple(ids) for ids in sequences} - {*map(tuple, known)} for name, sequences in data.heldout.items()}
    more = uses["spare"] if (effect, requests) == ("block", 1) else set()
    assert compared == uses["threshold_sequences"] | uses["utility"] | more
    assert uses["for_reference"]
    assert bool(data.spare) == (effect == "block")
    assert len(compared) >= 159 or not more  # what it needs at half of 0.05, one of two attacks


@pytest.mark.parametrize(
    ("attacks", "requests", "needed"),
    [
        pytest.param({"membership_loss": "block"}, 1, 79, marks=pytest.mark.slow),
        ({"membership_loss": "block", "sampled": "report"}, 1, 159),
        pytest.param({"membership_loss": "report", "sampled": "block"}, 1, 79, marks=pytest.mark.slow),
        ({"membership_loss": "block"}, 2, None),
        ({"membership_loss": "report"}, 1, None),
        ({"exposure": "block"}, 1, None),  # it may not apply
    ],
)
def test_too_little_held_out_text_for_an_attack_that_blocks_is_refused_before_training(
    memorised, attacks, requests, needed
):
    """It says how many texts it needs, not how many there are: that would tell the length of a text."""
    options = replace(OPTIONS, attacks=attacks)
    data = prepare(memorised[1], support.KNOWN[:requests], range(requests), support.RETAIN, support.HELDOUT, options)
    if needed is None:
        assert measure_before(*memorised, data, options).counted
        return
    with pytest.raises(HeldoutTooFew, match=f"need {needed} texts as long as those to forget$"):
        measure_before(*memorised, data, options)


def test_nothing_to_attack_needs_no_held_out_text(measured):
    """No request is memorised, so that an attack that blocks has nothing to compare."""
    model, tokenizer, data, baseline = measured
    assert not baseline.counted
    assert unseen_needed(0, {"membership_loss": "block"}) == 0
    measure_before(model, tokenizer, data, replace(OPTIONS, attacks={"membership_loss": "block"}))


@pytest.mark.parametrize("made", range(1, 1 + len(ATTACKS)))
@pytest.mark.parametrize("blocks", ["sampled", "membership_loss"])
def test_the_warning_at_registration_names_the_number_that_a_test_needs(made, blocks):
    """It is an inequality of the service, which has no torch."""
    others = [name for name in ATTACKS if name != blocks]
    effects = {name: "report" if i < made - 1 else "off" for i, name in enumerate(others)} | {blocks: "block"}
    needed = least_unseen(1, LEVEL / made, two_sided=blocks in TWO_SIDED)
    assert few_warning(needed, effects) is None
    assert f"at least {needed} held-out" in few_warning(needed - 1, effects)
    assert f"at least {needed + 32} held-out" in few_warning(needed + 31, effects, learned=32)
    assert few_warning(0, effects | {blocks: "report"}) is None


@pytest.fixture(scope="module")
def three_requests(measured):
    """What `measure_after` is given: two requests of the run and one of an earlier job, and one attack."""
    model, tokenizer, *_ = measured
    texts, options = support.people(3, seed=5), replace(OPTIONS, attacks={"membership_loss": "report"})
    earlier = {"earlier_texts": texts[2:], "earlier_request_ids": [2]}
    data = prepare(tokenizer, texts[:2], [0, 1], support.RETAIN, support.HELDOUT, options, **earlier)
    return model, tokenizer, data, measure_before(model, tokenizer, data, options), options


@pytest.mark.parametrize(
    ("failed", "memorised", "set_fails", "ends"),
    [
        ([0], [0, 1], False, True),
        ([0, 1], [0], False, True),
        ([2], [0, 1], False, True),  # a request of an earlier job
        ([], [0, 1], True, True),
        ([1], [0], True, False),  # it looked unseen to the parent, so that nothing was trained on it
        ([], [0, 1], False, False),
    ],
)
def test_a_miss_that_training_may_mend_ends_the_test(three_requests, monkeypatch, failed, memorised, set_fails, ends):
    """Then no probe is asked and no attack runs; a test that is the run's last runs everything."""
    asked = list[object]()
    monkeypatch.setattr(Baseline, "memorised", memorised)

    def judged(*sets, **counted):
        judgement = judge(*sets, **counted)
        judged_anew = tuple(replace(v, passed=v.request not in failed) for v in judgement.verdicts)
        return replace(judgement, verdicts=judged_anew, ma=0.9 if set_fails else 0.1, ma_limit=0.5, el=0.0)

    def answered(*sets):
        asked.append(sets)
        return [], []

    monkeypatch.setattr(verdicts, "judge", judged)
    monkeypatch.setattr(verdicts, "answered_requests", answered)
    report = measure_after(*three_requests, ends_at_miss=True)
    assert (not asked, not report.attacks) == (ends, ends)
    assert (report.reason is not None) == bool(failed or set_fails)
    assert (Checkpoint(2, met=True).reopen(report, 4) is not None) == ends
    assert measure_after(*three_requests).attacks
    assert len(asked) == 1 + (not ends)
