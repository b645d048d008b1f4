"""A job's report: one typed model, one reader and one writer, and what purging leaves of it."""

import dataclasses
import json

import pytest
from pydantic import ValidationError

from service.domain.disclosure import KEPT, NESTED, Contributors, disclosed, is_disclosed, redacted
from service.domain.report import ChildReport, Findings, JobReport, Means, Utility, VersionMetrics
from service.schemas.report import read_report, redacted_report, write_report
from tests.issuer import REPORT, findings
from worker.engine import measure

JOB_REPORT = JobReport(findings(REPORT), ["a" * 32], 1, fence=2)


def test_a_report_survives_the_pipe_and_the_database():
    """Written, sent as JSON and read again it is the same, typed values included."""
    child = ChildReport(findings(REPORT), {0: "PASS", 1: "FAIL"}, [0], {0: 2, 1: 1})
    for report in (child, JOB_REPORT):
        assert read_report(type(report), json.loads(json.dumps(write_report(report)))) == report


@pytest.mark.parametrize("nothing", [{}, None])
def test_a_report_of_the_release_before_is_read(nothing):
    """Rows of then are flat, have `{}` where nothing was measured, and do not say how many submitters there were."""
    flat = {**REPORT, "memorised": ["a" * 32], "fence": 2, "before": nothing, "limits": nothing, "after": None}
    report = read_report(JobReport, flat)
    assert (report.memorised, report.fence, report.submitters) == (["a" * 32], 2, None)
    assert (report.findings.before, report.findings.limits, report.findings.utility.max_ratio) == (None, None, 1.1)
    assert not is_disclosed(report.contributors)


@pytest.mark.parametrize("means", [{}, None, {"el": "suppressed", "ma": "suppressed"}])
def test_metrics_of_versions_of_the_release_before_are_read(means):
    """A restore took them from certificates, `suppressed` included; nobody counted submitters."""
    old = {"limits": {"el": 0.01, "ma": 0.4}, "before": means, "after": means, "epochs": 2, "memorised": 1}
    metrics = read_report(VersionMetrics, {**old, "utility": REPORT["utility"]})
    assert (metrics.before, metrics.after, metrics.submitters) == (None, None, None)
    assert metrics.limits == Means(0.01, 0.4)


def test_a_report_of_a_later_release_is_not_guessed_at():
    """Whoever goes back to an older release hears of it."""
    with pytest.raises(ValueError, match="version 3"):
        read_report(JobReport, {**write_report(JOB_REPORT), "version": 3})


def test_what_is_no_report_is_refused():
    """A number that is missing or of another type does not become a certificate."""
    for broken in ({**REPORT, "epochs": "many"}, {k: v for k, v in REPORT.items() if k != "utility"}):
        with pytest.raises(ValidationError):
            read_report(ChildReport, {"findings": broken, "verdicts": {}, "memorised": [], "sequences": {}})


def test_purging_leaves_public_numbers_alone():
    """Means over the submitted texts go, on every level; what is of held-out text or the run stays."""
    left = redacted_report(JOB_REPORT)
    assert (left.memorised, left.fence, left.findings.limits) == (["a" * 32], 2, Means(0.01, 0.4))
    assert (left.findings.before, left.findings.after) == (None, None)
    assert {(epoch.el, epoch.ma) for epoch in left.findings.trajectory} == {(None, None)}
    assert [epoch.perplexity for epoch in left.findings.trajectory] == [9.1, 9.18]
    metrics = VersionMetrics(Means(0.01, 0.4), Means(0.9, 0.9), Means(0.0, 0.3), left.findings.utility, 2, 1, 1)
    assert redacted_report(metrics) == dataclasses.replace(metrics, before=None, after=None)


def test_what_nobody_listed_is_not_shown():
    """The rule is an allow-list: a new number is about submitted texts until somebody says otherwise."""
    numbers = {"exposure": 0.5, "epochs": 3, "trajectory": [{"epoch": 1, "exposure": 0.5}], "findings": {"new": 1}}
    shown = {"exposure": None, "epochs": 3, "trajectory": [{"epoch": 1, "exposure": None}], "findings": {"new": None}}
    assert redacted(numbers) == shown
    everybody = disclosed({"exposure": 0.5, "epochs": 3, "loss": 0.1, "seconds": 9.0}, Contributors(10, 0.1))
    assert everybody == {"exposure": None, "epochs": 3, "loss": None, "seconds": None}
    assert {field.name for field in dataclasses.fields(Findings)} - KEPT - NESTED == {"before", "after"}


COUNTED = {
    "not counted": (Contributors(), False),
    "no share": (Contributors(3), False),
    "nobody": (Contributors.count([]), False),
    "one": (Contributors.count([("a", 1)] * 3), False),
    "two": (Contributors.count([("a", 1), ("b", 1), ("b", 1)]), False),
    "three": (Contributors.count([("a", 1), ("b", 1), ("c", 1)]), True),
    "three, half of it from one": (Contributors.count([("a", 2), ("b", 1), ("c", 1)]), True),
    "three, most of it from one": (Contributors.count([("a", 3), ("b", 1), ("c", 1)]), False),
}


@pytest.mark.parametrize("name", COUNTED)
def test_three_distinct_submitters_of_whom_none_has_most_are_enough(name):
    """Fewer could subtract their own numbers; what is shown is coarse; an auditor sees all."""
    contributors, enough = COUNTED[name]
    numbers = {"ma": 0.329, "after": {"el": 1.0, "ma": 0.15}, "limits": {"el": 0.019, "ma": 0.4}, "epochs": 3}
    shown = disclosed(numbers, contributors)
    assert (shown["ma"], shown["after"]) == ((0.3, {"el": 0.95, "ma": 0.15}) if enough else (None, None))
    assert (shown["limits"], shown["epochs"]) == ({"el": 0.01, "ma": 0.4}, 3)
    assert disclosed(numbers, contributors, auditor=True) == numbers


def test_the_engine_and_the_report_have_the_same_utility():
    """The compute child copies field by field: a metric that the engine gains is added to the report, or this fails."""
    engine, report = ({field.name for field in dataclasses.fields(kind)} for kind in (measure.Utility, Utility))
    assert engine == report
