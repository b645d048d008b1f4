"""What the verifier recomputes from the certificate's own numbers, and the words it refuses."""

import json

import pytest

from service.audit.certificate import NOT_MEMORISED, RequestLine, WordingRefused
from service.audit.manifest import manifest
from service.audit.verification import ExitCode
from service.audit.verify import verify
from service.domain.disclosure import Contributors
from tests.issuer import LINEAGE, LINES, POLICY, REPORT, TABLE, release_payload
from tests.service.audit.releases import FILES, refused

pytestmark = pytest.mark.usefixtures("no_network")
FAILED = RequestLine("d" * 32, b"\2" * 32, "FAIL", "criterion_missed")
SECOND_VERSION = {
    "lineage": {
        **LINEAGE,
        "version": 2,
        "parent_version": 1,
        "supersedes": 1,
        "parent_certificate": "a" * 64,
    }
}


def utility(**values) -> dict:
    """A release with other perplexities, ratios or budgets."""
    return {"report": {**REPORT, "utility": {**REPORT["utility"], **values}}}


def texts(heldout: str = "6" * 64, **overlap: int) -> dict:
    """A release with other held-out texts, of 200, or with another overlap of them with the retain texts."""
    both = [
        {"role": "retain", "sha256": "5" * 64, "records": 9},
        {"role": "heldout", "sha256": heldout, "records": 200},
    ]
    return {"reference_texts": both, "heldout_overlap": overlap or None}


COPY = {
    "scheme": "int8",
    "status": "RUN",
    "why": None,
    "passed": True,
    "kept": ["lm_head"],
    "digests": {"model.safetensors": "9" * 64},
}


def copied(**changes) -> dict:
    """A release whose policy asks for a quantised copy, with something else about it."""
    return {"report": {**REPORT, "quantised": [COPY | changes]}, "parameters": POLICY | {"quantise": ["int8"]}}


POLICY_FAILURES = {
    "a copy with a result and no test": (copied(status="NOT_RUN"), "a result without a test"),
    "a copy without a result": (copied(passed=None), "a result without a test"),
    "a copy without files": (copied(digests={}), "a result without a test"),
    "a copy with a result and a reason": (copied(why="unsupported"), "a result without a test"),
    "a request failed": ({"requests": [*LINES, FAILED]}, "did not pass"),
    "a request was not tested": (
        {"requests": [*LINES, RequestLine("d" * 32, b"\2" * 32, "NOT_TESTED", None)]},
        "did not pass",
    ),
    "no request": ({"requests": []}, "no request"),
    "MA over the limit": ({"report": {**REPORT, "after": {"el": 0.0, "ma": 0.46}}}, "mean MA"),
    "EL over the limit": ({"report": {**REPORT, "after": {"el": 0.06, "ma": 0.3}}}, "mean EL"),
    "a limit over every threshold": ({"report": {**REPORT, "limits": {"el": 0.01, "ma": 0.41}}}, "every threshold"),
    "over budget": (
        {
            "report": {
                **REPORT,
                "utility": {**REPORT["utility"], "heldout_ratio": 1.100001, "heldout_perplexity_after": 9.900009},
            }
        },
        "is over",
    ),
    "an earlier request came back": (
        {"report": {**REPORT, "earlier": {"requests": 2, "regressed": ["e" * 32]}}},
        "came back",
    ),
    "another budget": (
        {"report": {**REPORT, "utility": {**REPORT["utility"], "max_ratio": 1.2}}},
        "budget is not the policy's",
    ),
    "a ratio of other perplexities": (
        {"report": {**REPORT, "utility": {**REPORT["utility"], "heldout_perplexity_after": 9.9}}},
        "does not follow from",
    ),
    "not within its budget": (
        {"report": {**REPORT, "utility": {**REPORT["utility"], "within_budget": False}}},
        "perplexity ratio",
    ),
    "over the budget of all versions": (
        utility(total_ratio=1.33, first_heldout_perplexity=9.18 / 1.33) | SECOND_VERSION,
        "of all versions is over",
    ),
    "not within the budget of all versions": (utility(within_total_budget=False), "of all versions is over"),
    "another budget of all versions": (utility(max_total_ratio=1.5), "of all versions is not the policy's"),
    "a named budget of all versions that is not kept": (
        {"parameters": {**POLICY, "max_total_perplexity_ratio": 1.01}},
        "of all versions is not the policy's",
    ),
    "a ratio of all versions from other perplexities": (
        utility(first_heldout_perplexity=8.0) | SECOND_VERSION,
        "of all versions does not follow from",
    ),
    "a version 0 that is not the parent": (
        utility(first_heldout_perplexity=10.0, total_ratio=0.918),
        "is not the parent's",
    ),
    "no perplexity of version 0": (utility(first_heldout_perplexity=None), "lacks a result"),
    "a request that was not published": (
        {"requests": [*LINES, RequestLine("d" * 32, b"\2" * 32, "NOT_PUBLISHED", "utility_budget_exceeded")]},
        "did not pass",
    ),
    "another limit of the neighbours": (utility(max_neighbour_loss=0.1), "neighbours may lose is not the policy's"),
    "not within the limit of the neighbours": (utility(within_neighbour_limit=False), "lost more than its limit"),
    "a reference without a distillation": ({"report": {**REPORT, "reference": "base"}}, "reference does not fit"),
    "a reference without its base": (
        {"report": {**REPORT, "reference": "base"}, "parameters": {**POLICY, "loss": "distil"}},
        "base does not fit",
    ),
    "a distillation without a reference": ({"parameters": {**POLICY, "loss": "distil"}}, "reference does not fit"),
    "the same retain and held-out texts": (texts("5" * 64), "are also retain texts"),
    "too many held-out texts among the retain texts": (texts(exact=1, near=2), "are also retain texts"),
    "nobody was trained on": (
        {"requests": [RequestLine(r.ref, r.commitment, "PASS", NOT_MEMORISED) for r in LINES]},
        "nothing was trained on",
    ),
    "no epoch": ({"report": {**REPORT, "epochs": 0}}, "nothing was trained on"),
    "not published": ({"published": False}, "not published"),
    "overall FAIL": ({"overall": "FAIL", "requests": [FAILED]}, "overall"),
    "no thresholds": ({"report": {**REPORT, "thresholds": []}}, "no thresholds"),
    "a version follows itself": ({"lineage": {**LINEAGE, "version": 0}}, "broken lineage"),
    "another is superseded": ({"lineage": {**LINEAGE, "supersedes": 1}}, "broken lineage"),
    "a parent without a certificate": (
        {"lineage": {**LINEAGE, "version": 2, "parent_version": 1, "supersedes": 1}},
        "broken lineage",
    ),
    "a registered parent with one": ({"lineage": {**LINEAGE, "parent_certificate": "a" * 64}}, "broken lineage"),
    "no utility": ({"report": {**REPORT, "utility": None}}, "lacks a result"),
    "no after": ({"report": {**REPORT, "after": None}}, "was not run"),
}


@pytest.mark.parametrize("name", POLICY_FAILURES)
def test_overall_is_recomputed(tmp_path, issuer, name):
    """PASS is believed only if the numbers and verdicts add up to it."""
    changes, reason = POLICY_FAILURES[name]
    refusal = refused(issuer.release(tmp_path / "r", **changes))
    assert (refusal.code, reason in refusal.reason) == (ExitCode.POLICY_FAILURE, True), refusal.reason


def test_exactly_at_the_limit_passes(tmp_path, issuer):
    """At or under: the limits are held-out means, and the budget is a maximum."""
    values = {**REPORT["utility"], "heldout_ratio": 1.1, "heldout_perplexity_after": 9.9}
    values |= {"first_heldout_perplexity": 7.5, "total_ratio": 1.32}
    report = {**REPORT, "after": {"el": 0.01, "ma": 0.4}, "utility": values}
    verify(issuer.release(tmp_path / "r", report=report, **SECOND_VERSION, **texts(exact=1, near=1)))


@pytest.mark.parametrize("change", ["another", "none"])
def test_the_copies_are_those_of_the_policy(tmp_path, issuer, monkeypatch, change):
    """Whoever asks for a copy learns of it."""
    changes = copied()
    monkeypatch.setattr("tests.issuer.POLICY", changes["parameters"])
    release = issuer.release(tmp_path / "r", **changes)
    (listed,) = json.loads(release_payload(release))["predicate"]["verification"]["quantised"]
    other = [listed | {"scheme": "int4"}] if change == "another" else []
    refusal = refused(issuer.changed(release, "verification", "quantised", to=other))
    assert (refusal.code, "policy asks for" in refusal.reason) == (ExitCode.POLICY_FAILURE, True)


def test_a_copy_that_a_worker_of_an_earlier_release_did_not_make_is_listed(tmp_path, issuer, monkeypatch):
    """Nobody tested it, and the version is published."""
    parameters = POLICY | {"quantise": ["int4", "int8"]}
    monkeypatch.setattr("tests.issuer.POLICY", parameters)
    release = issuer.release(tmp_path / "r", parameters=parameters)
    lines = verify(release).statement["predicate"]["verification"]["quantised"]
    assert [(one["scheme"], one["status"], one["why"]) for one in lines] == [
        ("int4", "NOT_RUN", "not_made"),
        ("int8", "NOT_RUN", "not_made"),
    ]


@pytest.mark.parametrize("outcome", ["not_memorised", "failed"])
def test_a_run_without_a_version_lists_no_copies(issuer, outcome):
    """Nobody looks at what compute says of them."""
    report = {**REPORT, "outcome": outcome, "quantised": [COPY | {"digests": {"a record": "9" * 64}}]}
    payload = issuer.payload(FILES, report=report, published=False, overall="FAIL", requests=[FAILED])
    assert json.loads(payload)["predicate"]["verification"]["quantised"] == []


def test_a_copy_that_fails_keeps_no_version_back(tmp_path, issuer, monkeypatch):
    """Its verdict is its own."""
    changes = copied(passed=False)
    monkeypatch.setattr("tests.issuer.POLICY", changes["parameters"])  # what the log holds before the run
    verify(issuer.release(tmp_path / "r", **changes))


def test_another_number_of_requests_is_a_failure(release, issuer):
    """The forget set's count is that of the verdicts."""
    issuer.changed(release, "forget_set", "requests", to=4)
    assert "another number" in refused(release).reason


def test_an_attack_has_one_result(release, issuer):
    """Its result and its truth value say the same."""
    attacks = json.loads(release_payload(release))["predicate"]["verification"]["attacks"]
    changed = [{**one, "passed": True} if one["name"] == "sampled" else one for one in attacks]
    refusal = refused(issuer.changed(release, "verification", "attacks", to=changed))
    assert (refusal.code, "“sampled” has two results" in refusal.reason) == (ExitCode.POLICY_FAILURE, True)


@pytest.mark.parametrize("change", ["status", "result", "left out"])
def test_a_mandatory_attack_must_have_been_run(release, issuer, change):
    """EL and MA are what the record is about."""
    attacks = json.loads(release_payload(release))["predicate"]["verification"]["attacks"]
    wrong = {"status": "NOT_RUN"} if change == "status" else {"result": "FAIL"}
    changed = attacks[1:] if change == "left out" else [{**attacks[0], **wrong}, *attacks[1:]]
    refusal = refused(issuer.changed(release, "verification", "attacks", to=changed))
    assert (refusal.code, attacks[0]["name"] in refusal.reason) == (ExitCode.POLICY_FAILURE, True)


FEW = {
    "two requests": LINES[:2],
    "three, of which one was not memorised": [*LINES[:2], RequestLine("d" * 32, b"\4" * 32, "PASS", NOT_MEMORISED)],
}


@pytest.mark.parametrize("name", FEW)
def test_means_of_few_submitters_are_not_shown(tmp_path, issuer, name):
    """They would be about a person; such a release verifies by its verdicts, and one that tells them does not."""
    release = issuer.release(tmp_path / "r", requests=FEW[name])
    predicate = verify(release).statement["predicate"]
    verification = predicate["verification"]
    assert set(verification["before"].values()) | set(verification["after"].values()) == {"suppressed"}
    assert {e["ma"] for e in predicate["training"]["trajectory"]} == {"suppressed"}
    assert b"0.95" not in release_payload(release)
    original = release_payload(release)
    for path, value in (
        (("verification", "after"), {"el": "0.000000", "ma": "suppressed"}),
        (("verification", "before"), {"el": "suppressed", "ma": "0.950000"}),
        (("training", "trajectory", 0, "ma"), "0.600000"),
    ):
        issuer.certify(release, original)
        refusal = refused(issuer.changed(release, *path, to=value))
        assert (refusal.code, "fewer than" in refusal.reason) == (ExitCode.POLICY_FAILURE, True), path


def test_a_certificate_may_suppress_all_means_and_not_some(tmp_path, issuer):
    """Three submitters of whom one has most: no mean is shown, and the release verifies; half a curtain is refused."""
    release = issuer.release(tmp_path / "r", contributors=Contributors(3, 0.6))
    predicate = verify(release).statement["predicate"]
    assert predicate["forget_set"]["submitters"] == "<= 5"
    assert set(predicate["verification"]["after"].values()) == {"suppressed"}
    refusal = refused(issuer.changed(release, "verification", "before", to={"el": "0.900000", "ma": "0.950000"}))
    assert (refusal.code, "suppresses some" in refusal.reason) == (ExitCode.POLICY_FAILURE, True)


def test_exact_means_of_earlier_releases_are_compared_exactly(release, issuer):
    """They are not multiples of a step: at the limit they hold, and over it by a digit they do not."""
    issuer.changed(release, "verification", "after", to={"el": "0.010000", "ma": "0.399999"})
    verify(release)
    issuer.changed(release, "verification", "after", to={"el": "0.010001", "ma": "0.399999"})
    assert "mean EL" in refused(release).reason


def test_thresholds_that_were_loosened_after_measuring(tmp_path, issuer):
    """They, or any parameter, are not those that the log had before the run."""
    loose = [{**TABLE[0], "ma_mean": 0.6}, TABLE[1]]
    for changes, name in (
        ({"report": {**REPORT, "thresholds": loose}}, "thresholds"),
        ({"parameters": {**POLICY, "max_epochs": 21}}, "parameters"),
    ):
        refusal = refused(issuer.release(tmp_path / name, **changes))
        assert (refusal.code, refusal.reason) == (
            ExitCode.POLICY_FAILURE,
            f"the {name} differ from those that were fixed before the run",
        )


# Wording.
@pytest.mark.parametrize("name", ["we guarantee it", "dpo@example.org", "all data ERASED", "a proof  of\nforgetting"])
def test_the_issuer_refuses_and_the_verifier_names_bad_wording(release, issuer, name):
    """The issuer does not write it; the verifier does not accept it from anyone who did, wherever it stands."""
    with pytest.raises(WordingRefused):
        issuer.payload(manifest(release), issuer=name)
    original = release_payload(release)
    for place in (("issuer",), ("note",), ("method", "parameters", name)):
        issuer.certify(release, original)
        assert refused(issuer.changed(release, *place, to=name)).code == ExitCode.POLICY_FAILURE


def test_the_issuer_refuses_what_would_not_fit_the_schema(release, issuer):
    """A float in the lineage is caught before it is signed."""
    with pytest.raises(WordingRefused, match="lineage"):
        issuer.payload(manifest(release), lineage={**LINEAGE, "version": 1.5})
