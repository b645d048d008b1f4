"""Exact means of few submitters are for auditors alone."""

import pytest

from service.audit.numbers import certified_utility
from service.domain.disclosure import OF_NEIGHBOURS, Contributors, disclosed, redacted
from service.domain.report import Utility
from service.domain.states import CONTROL_STAGES
from service.lease import hold_job
from service.steps.path.batch import batch_requests
from service.steps.path.certify import certify_job
from service.steps.path.publish import publish_version
from service.steps.path.unlearn import store_epoch, store_thresholds
from tests.service.conftest import only_model, submit
from tests.service.jobs import REPORT, baseline, claim, expire, to_certify


@pytest.fixture
def as_(api, new_key):
    """GET with a key of these scopes."""

    def get(path: str, *scopes: str):
        return api.get(path, headers={"Authorization": f"Bearer {new_key(*scopes)}"})

    return get


@pytest.mark.parametrize(
    ("sequences", "share"),
    [
        ([("a", 1)] * 9 + [("b", 9), ("c", 9)], 9 / 11),  # most requests, whose scores are means over requests
        ([("a", 9), ("b", 1), ("c", 1)], 9 / 11),  # most sequences
        ([("a", 1), ("b", 1), ("c", 1), ("d", 0)], 1 / 3),
        ([("a", 0)], None),
    ],
)
def test_a_share_is_of_sequences_or_of_requests_whichever_is_greater(sequences, share):
    """EL and MA are means over sequences, an attack's scores over requests; one rule is for both."""
    contributors = Contributors.count(sequences)
    assert (contributors.submitters, contributors.largest_share) == (len({k for k, n in sequences if n}), share)


@pytest.mark.parametrize(("requests_", "submitters"), [(1, 1), (3, 1), (3, 2), (3, 3)])
def test_means_of_few_submitters_are_shown_to_auditors_alone(api, services, model, as_, new_key, requests_, submitters):
    """In jobs, their history and events, and versions. Whoever submitted two of three could subtract its own."""
    keys = [new_key("submit") for _ in range(submitters)]
    for i in range(requests_):
        submit(api, headers={"Authorization": f"Bearer {keys[i % submitters]}"})
    job_id = batch_requests(services, only_model(services))
    members = range(requests_)
    report = {**REPORT, "verdicts": {str(i): "PASS" for i in members}, "memorised": list(members)}
    fence = claim(services, job_id)
    store_thresholds(services, job_id, fence, baseline(report))
    epoch = {  # numbers of more digits than a time has
        "epoch": 1,
        "el": 0.12312312,
        "ma": 0.45645645,
        "loss": 0.78978978,
        "forget_loss": 0.77777777,
        "retain_loss": 2.0,
        "met": False,
        "el_limit": 0.0,
        "ma_limit": 0.4,
        "strength": 0.61161161,
        "perplexity": 9.0,
        "seconds": 1.0,
    }
    store_epoch(services, job_id, fence, epoch)
    expire_and_certify(services, job_id, report)
    places = [f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/history", f"/v1/jobs/{job_id}/events", "/v1/jobs"]
    versions = ["/v1/models/tiny/versions/1", "/v1/models/tiny/versions"]
    for place in places + versions:
        exact = as_(place, "read", "audit").text
        assert as_(place, "admin").text == exact
        assert (str(epoch["ma"]) in exact) == (place in places)
        hidden = as_(place, "read", "submit").text
        for name in ("el", "ma", "loss", "forget_loss", "strength"):  # exact means of an epoch, and of training
            assert str(epoch[name]) not in hidden, (place, name)
        for mean in ('"ma":0.95', '"ma":0.3}', '"ma":0.45'):  # coarse: as they are, and of 0.45645645
            coarse = mean in exact.replace(" ", "") or (mean == '"ma":0.45' and place in places)
            assert (mean in hidden.replace(" ", "")) == (coarse and submitters == 3), (place, mean)
        assert "0.4" in hidden or "history" in place  # limits are of held-out text


def expire_and_certify(services, job_id, report) -> None:
    """Take the job to its version."""
    expire(services, job_id)
    to_certify(services, job_id, report)
    with hold_job(services, job_id, CONTROL_STAGES) as lease:
        certify_job(services, job_id, lease.fence)
        publish_version(services, job_id, lease.fence)


ATTACK = {"name": "membership_loss", "effect": "report", "status": "RUN", "why": None, "passed": False, "level": 0.005}
ATTACK |= {"figure": -2.337, "control": -4.4321, "auc": 1.0, "p_value": 0.00005, "texts": 3, "unseen": 60}
ATTACK |= {"partial": False}
HIDDEN = {"why", "figure", "control", "auc", "p_value", "texts", "partial"}


def test_the_texts_choose_the_neighbours_whose_figures_are_for_auditors_alone():
    """Whoever has the retain file could compute them for each guess. The limit, and whether it was kept, are public."""
    utility = {"heldout_ratio": 1.01, "max_neighbour_loss": 0.03, "within_neighbour_limit": True}
    utility |= dict.fromkeys(OF_NEIGHBOURS, 0.123456)
    many = Contributors(9, 0.2)
    for shown in (disclosed({"utility": utility}, many)["utility"], redacted({"utility": utility})["utility"]):
        assert {name for name, value in shown.items() if value is None} == OF_NEIGHBOURS
        assert shown["heldout_ratio"] == 1.01
    assert disclosed({"utility": utility}, many, auditor=True)["utility"] == utility
    measured = Utility(*[1.0] * 7, within_budget=True, neighbour_ma_before=0.123456, neighbour_loss_after=0.123456)
    assert "0.123456" not in str(certified_utility(measured))


def test_prompts_are_counted_in_ranges():
    """Each record makes some, so an exact count would tell how many records a search found."""
    probes = {"asked": 9, "samples": 20, "answered_before": 7, "answered_after": 0}
    ranges = {"asked": "<= 10", "samples": 20, "answered_before": "<= 10", "answered_after": "0"}
    assert disclosed({"probes": probes}, Contributors(9, 0.2)) == {"probes": ranges}
    assert disclosed({"probes": probes}, Contributors(9, 0.2), auditor=True) == {"probes": probes}
    assert redacted({"probes": probes}) == {"probes": probes}


@pytest.mark.parametrize(("submitters", "scores"), [(1, (None, None, None)), (3, (-2.35, -4.45, 0.95))])
def test_what_an_attack_found_is_shown_as_means_are(submitters, scores):
    """Whether it succeeded is public; its scores are coarse, from three submitters on, and a 1 is no exact 1."""
    (shown,) = disclosed({"attacks": [ATTACK]}, Contributors(submitters, 1 / submitters))["attacks"]
    assert (shown["figure"], shown["control"], shown["auc"]) == scores
    assert (shown["name"], shown["passed"], shown["level"]) == ("membership_loss", False, 0.005)
    assert not {"p_value", "texts"} & shown.keys()
    for part in ({"partial": True}, {"partial": None}):  # whose texts it is over is not known
        (some,) = disclosed({"attacks": [ATTACK | part]}, Contributors(submitters, 1 / submitters))["attacks"]
        assert (some["figure"], some["control"], some["auc"]) == (None, None, None)
    (left,) = redacted({"attacks": [ATTACK]})["attacks"]
    assert {name for name, value in left.items() if value is None} == HIDDEN
