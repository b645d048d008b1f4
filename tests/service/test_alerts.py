"""The chart's alerts, as Prometheus' own `promtool` evaluates them: each fires when it should, and not before."""

import shutil
import subprocess

import pytest
import yaml

from tests import ROOT

PROMTOOL = shutil.which("promtool")
pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="no promtool: apt-get install promtool")
RULES = yaml.safe_load((ROOT / "docker" / "chart" / "alerts.yaml").read_text())
# Alert -> the metric, a value that is all right, one that is not, minutes after which it fires, and the summary then.
CASES = {
    "RequestsOverdue": ("unlearnd_requests_overdue", 0, 2, 5, "2 deletion requests are past their deadline."),
    "DeadlineNear": (
        "unlearnd_next_deadline_seconds",
        4 * 86_400,
        86_400,
        15,
        "The next deadline is in 1d 0h 0m 0s.",
    ),
    "BacklogWillBeLate": (
        'unlearnd_backlog_late{model="assistant"}',
        0,
        7,
        30,
        "7 requests for assistant will miss their deadline at the present rate.",
    ),
    "JobsWait": (
        "unlearnd_oldest_queued_job_seconds",
        3600,
        7200,
        10,
        "A job has waited for a worker for 2h 0m 0s.",
    ),
    "RequestsFailed": (
        "unlearnd_requests_failed_unresolved",
        0,
        1,
        60,
        "1 requests have failed and nobody has dealt with them.",
    ),
    "ReleaseDamaged": (
        "unlearnd_releases_damaged",
        0,
        1,
        0,
        "1 published releases have a file that was changed in storage.",
    ),
    "LogUnsettled": (
        "unlearnd_log_settled",
        1,
        0,
        5,
        "The database was promoted, restored or copied, and its log is not reconciled. No request is taken.",
    ),
    "RequestsLost": (
        "unlearnd_requests_lost",
        0,
        3,
        0,
        "3 accepted requests were lost with the last commits of the database.",
    ),
    "NoMetrics": ("unlearnd_requests_overdue", 0, None, 10, "Nobody answers for the service."),
}
QUIET = 60  # minutes for which all is well


def rule(name: str) -> dict:
    """A rule of the chart."""
    (group,) = RULES
    return next(entry for entry in group["rules"] if entry["alert"] == name)


def scenario(name: str) -> dict:
    """An hour in which all is well, and then two processes of the API say that it is not."""
    metric, good, bad, minutes, summary = CASES[name]
    series = [
        f'{metric}{{pod="{pod}"}}' if "{" not in metric else metric.replace("}", f',pod="{pod}"}}') for pod in "ab"
    ]
    values = f"{good}x{QUIET} " + ("_x120" if bad is None else f"{bad}x120")
    labels = {"severity": rule(name)["labels"]["severity"]} | ({"model": "assistant"} if "model" in metric else {})
    firing = [{"exp_labels": labels, "exp_annotations": {**rule(name)["annotations"], "summary": summary}}]
    stale = 5 if bad is None else 0  # a series that is no more is believed for so long
    ends = QUIET + 1 + minutes + stale
    times = [(QUIET, []), (ends - 1, [] if minutes else firing), (ends, firing)]
    return {
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one in series],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": expected}
            for minute, expected in dict(times).items()
            if minute > QUIET or expected == []
        ],
    }


def test_every_alert_has_a_case():
    """A new one is tried, too."""
    (group,) = RULES
    assert [entry["alert"] for entry in group["rules"]] == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_when_it_should(name, tmp_path):
    """Once, though two processes say the same, and only after its time."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": RULES}))
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [scenario(name)]}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
        ran = subprocess.run([PROMTOOL, *command], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
