"""The budgets of utility: of one run, and of all runs together."""

import json
from dataclasses import replace

import pytest

from tests import support
from worker.engine.attacks.scores import AttackResult
from worker.engine.baseline import Baseline
from worker.engine.measure import blocked_by, measure_after, measure_before
from worker.engine.options import Options
from worker.engine.prepare import prepare
from worker.engine.probes import Answer

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
        (1.49, 1.4, "total_utility_budget_exceeded"),
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
