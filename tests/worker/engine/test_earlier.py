"""Requests of earlier jobs: all are measured again, some in full."""

import dataclasses

import pytest

from tests import support
from worker.engine.checkpoint import Checkpoint
from worker.engine.earlier import FEWEST_WATCHED, measure_earlier, watched_requests
from worker.engine.likelihoods import extraction_likelihoods
from worker.engine.measure import measure_before
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.options import Options
from worker.engine.prepare import prepare

OPTIONS = Options.from_mapping(support.POLICY)
FEW = dataclasses.replace(OPTIONS, earlier_sample=8)
EARLIER = [*support.people(30, seed=11), support.KNOWN[1], *support.people(9, seed=12)]  # one is known by heart
KNOWN = 30 + 1  # its request


@pytest.fixture(scope="module")
def measured(memorised):
    """(model, sets, baseline) of a run whose earlier requests are more than it looks at."""
    model, tokenizer = memorised
    forget = (support.KNOWN[:1], [0])
    sets = {"earlier_texts": EARLIER, "earlier_request_ids": range(1, 41), "run": "a"}
    data = prepare(tokenizer, *forget, support.RETAIN, support.HELDOUT, FEW, **sets)
    return model, data, measure_before(model, tokenizer, data, FEW)


def test_a_run_watches_those_nearest_to_their_limits_and_some_of_its_own(measured):
    """The attempts of a run watch the same; another run watches others. Few enough are all watched."""
    model, data, baseline = measured
    of_runs = {
        run: watched_requests(model, dataclasses.replace(data, run=run), baseline.by_length, FEW)
        for run in ("a", "a ", "b", "c", "d")
    }
    assert baseline.watched == of_runs["a"]
    assert all(len(watched) == 8 and KNOWN in watched for watched in of_runs.values())
    near = set.intersection(*map(set, of_runs.values()))
    assert 4 <= len(near) < 8
    assert len(set.union(*map(set, of_runs.values()))) > 12
    as_many = dataclasses.replace(data, forget=data.earlier)  # a run watches as many as it forgets
    assert watched_requests(model, as_many, baseline.by_length, OPTIONS) == list(range(1, 41))
    assert len(watched_requests(model, data, baseline.by_length, OPTIONS)) == FEWEST_WATCHED


def test_all_have_ma_and_a_bound_and_some_have_el(measured):
    """Those that are watched and those that are nearest on this model; MA is exact for every one."""
    model, data, baseline = measured
    thresholds = baseline.sequence_thresholds(data.earlier)
    exact_el = extraction_likelihoods(model, data.earlier.sequences, thresholds, FEW)
    el, ma, exact = measure_earlier(model, data, thresholds, [2, 3, 99], FEW)
    assert 2 < exact <= 2 + 4  # a watched request was purged since
    assert ma == [accuracy(row) for row in token_matches(model, data.earlier.sequences)]
    assert all(bound <= value + 1e-12 for bound, value in zip(el, exact_el, strict=True))
    measured_in_full = [index for index, request in enumerate(data.earlier.request_ids) if request in (2, 3, KNOWN)]
    assert [el[i] for i in measured_in_full] == [exact_el[i] for i in measured_in_full]
    el, _, exact = measure_earlier(model, data, thresholds, range(1, 41), FEW)
    assert (el, exact) == (exact_el, 40)


def test_what_came_back_is_named_however_many_there_are(measured, memorised):
    """It is over its limit by MA alone, so it needs no luck."""
    from worker.engine.measure import measure_after

    model, data, baseline = measured
    unlucky = dataclasses.replace(baseline, watched=[2, 3])
    report = measure_after(model, memorised[1], data, unlucky, FEW)
    assert KNOWN in [v.request for v in report.earlier if not v.passed]
    assert len(report.earlier) == 40
    assert report.earlier_exact < 10
    forget, thresholds = unlucky.training_set(data, [KNOWN])
    assert forget.requests == [0, 2, 3, KNOWN]  # the next round trains on it
    assert len(thresholds) == len(forget.sequences)


def test_a_purge_of_an_earlier_text_changes_what_a_run_rests_on_only_if_it_was_to_be_asked_for(memorised, measured):
    """Else an attempt goes on after it: the sets are the same, and what was measured of the others is theirs still."""
    _, data, baseline = measured
    asked = {probe.request for probe in data.probes}
    for request in data.earlier.requests[:6]:
        kept = [(text, i) for i, text in enumerate(EARLIER, start=1) if i != request]
        texts, ids = [text for text, _ in kept], [i for _, i in kept]
        sets = {"earlier_texts": texts, "earlier_request_ids": ids, "run": "a"}
        again = prepare(memorised[1], support.KNOWN[:1], [0], support.RETAIN, support.HELDOUT, FEW, **sets)
        assert (again.own == data.own) is (request not in asked)
        assert request not in again.earlier.requests
        assert len(baseline.sequence_thresholds(again.earlier)) == len(again.earlier.sequences)
    assert not set(data.earlier.requests[:6]) <= asked


def test_what_came_back_once_is_looked_at_until_the_end(measured):
    """In the order in which it did: a checkpoint's state of single sequences is about the first of them."""
    _, data, baseline = measured
    few = dataclasses.replace(baseline, watched=[2, 3])
    one, two = (few.training_set(data, back)[0] for back in ([KNOWN], [KNOWN, 9]))
    assert two.request_ids[: len(one.request_ids)] == one.request_ids
    rows = {"rows": tuple(one.request_ids), "gaps": [[0.0]] * len(one.request_ids)}
    checkpoint = Checkpoint(epoch=4, correction={"added": [0.5]}, **rows)
    assert checkpoint.fitted(two) == checkpoint
    without = two.only([r for r in two.requests if r != 3])  # its texts were purged
    fitted = checkpoint.fitted(without)
    assert (fitted.gaps, fitted.epoch, fitted.correction) == ([], 4, checkpoint.correction)
