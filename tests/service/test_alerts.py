"""The chart's alerts, as Prometheus' own `promtool` evaluates them: each fires when it should, and not before."""

import shutil
import subprocess
from dataclasses import dataclass

import pytest
import yaml

from tests import ROOT

PROMTOOL = shutil.which("promtool")
RULES = yaml.safe_load((ROOT / "docker" / "chart" / "alerts.yaml").read_text())
HOUR, END = 60, 240  # minutes
INTAKE = 'method="POST",route="/v1/deletion-requests"'


@dataclass(frozen=True)
class Case:
    """An hour in which all is well, and then three in which it is not.

    Attributes:
        series: Each with its values, in promtool's notation: one a minute.
        after: Minutes of the second part after which the alert fires, and not before; a rate's is the whole of it.
        summary: What it says then.
        labels: Of the alert, beside its severity.
    """

    series: dict[str, str]
    after: int
    summary: str
    labels: tuple[tuple[str, str], ...] = ()


def value(good: float, bad: float) -> str:
    """A value that changes after an hour."""
    return f"{good}x{HOUR - 1} {bad}x{END - HOUR}"


def rate(good: int, bad: int) -> str:
    """A counter with so many more a minute in the first hour, and so many afterwards."""
    return f"0+{good}x{HOUR} {good * HOUR + bad}+{bad}x{END - HOUR}"


CASES = {
    "RequestsOverdue": Case(
        {"unlearnd_requests_overdue": value(0, 2)}, 5, "2 deletion requests are past their deadline."
    ),
    "DeadlineNear": Case(
        {"unlearnd_next_deadline_seconds": value(4 * 86_400, 86_400)}, 15, "The next deadline is in 1d 0h 0m 0s."
    ),
    "BacklogWillBeLate": Case(
        {'unlearnd_backlog_late{model="assistant"}': value(0, 7)},
        30,
        "7 requests for assistant will miss their deadline at the present rate.",
        (("model", "assistant"),),
    ),
    "JobsWait": Case(
        {"unlearnd_oldest_queued_job_seconds": value(3600, 7200)}, 10, "A job has waited for a worker for 2h 0m 0s."
    ),
    "RequestsFailed": Case(
        {"unlearnd_requests_failed_unresolved": value(0, 1)},
        60,
        "1 requests have failed and nobody has dealt with them.",
    ),
    "ReleaseDamaged": Case(
        {"unlearnd_releases_damaged": value(0, 1)}, 0, "1 published releases have a file that was changed in storage."
    ),
    "LogUnsettled": Case(
        {"unlearnd_log_settled": value(1, 0)},
        5,
        "The database was promoted, restored or copied, and its log is not reconciled. No request is taken.",
    ),
    "RequestsLost": Case(
        {"unlearnd_requests_lost": value(0, 3)},
        0,
        "3 accepted requests were lost with the last commits of the database.",
    ),
    "IntakeFails": Case(
        {
            f'unlearnd_http_seconds_count{{{INTAKE},status="2xx"}}': rate(50, 50),
            f'unlearnd_http_seconds_count{{{INTAKE},status="5xx"}}': rate(0, 1),
            'unlearnd_http_seconds_count{method="GET",route="/v1/jobs",status="5xx"}': rate(9, 9),
        },
        END - HOUR,
        "1.961% of deletion requests are not accepted.",
    ),
    "IntakeSlow": Case(
        {
            f'unlearnd_http_seconds_bucket{{{INTAKE},status="2xx",le="0.25"}}': rate(100, 0),
            f'unlearnd_http_seconds_bucket{{{INTAKE},status="2xx",le="0.5"}}': rate(100, 100),
            f'unlearnd_http_seconds_bucket{{{INTAKE},status="2xx",le="+Inf"}}': rate(100, 100),
        },
        END - HOUR,
        "One in a hundred deletion requests takes 497.5ms or more to be accepted.",
    ),
    "NoMetrics": Case(
        {"unlearnd_requests_overdue": f"0x{HOUR - 1} _x{END}"},
        15,  # a series that is no more is believed for five minutes
        "Nobody answers for the service.",
    ),
}


def rule(name: str) -> dict:
    """A rule of the chart."""
    (group,) = RULES
    return next(entry for entry in group["rules"] if entry["alert"] == name)


def in_each_pod(series: str) -> list[str]:
    """The series of two processes of the API, which say the same."""
    name, _, labels = series.partition("{")
    return [f'{name}{{pod="{pod}",{labels or "}"}' for pod in "ab"]


def scenario(name: str) -> dict:
    """What `promtool test rules` reads: no alert while all is well, and one, once it is not, when its time has come."""
    case = CASES[name]
    labels = {"severity": rule(name)["labels"]["severity"], **dict(case.labels)}
    alert = {"exp_labels": labels, "exp_annotations": {**rule(name)["annotations"], "summary": case.summary}}
    fires = HOUR + case.after
    expected = {HOUR - 1: [], fires: [alert]}
    if 0 < case.after < END - HOUR:
        expected[fires - 1] = []
    return {
        "interval": "1m",
        "input_series": [
            {"series": one, "values": values} for series, values in case.series.items() for one in in_each_pod(series)
        ],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": alerts} for minute, alerts in expected.items()
        ],
    }


def test_every_alert_has_a_case():
    """A new one is tried, too."""
    (group,) = RULES
    assert [entry["alert"] for entry in group["rules"]] == list(CASES)


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool: apt-get install promtool")
@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_when_it_should(name, tmp_path):
    """Once, though two processes say the same, and only after its time."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": RULES}))
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [scenario(name)]}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
        ran = subprocess.run([PROMTOOL, *command], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
