"""No attack of the policy is left out of a release's certificate, listed twice, or listed as something else."""

import json
from dataclasses import replace

import pytest

from service.audit.certificate import MANDATORY_ATTACKS, NOT_MEMORISED
from service.audit.verification import ExitCode
from service.audit.verify import verify
from service.domain.disclosure import SUPPRESSED
from tests.issuer import LINES, POLICY, REPORT, contributors, release_payload
from tests.service.audit.releases import FILES, refused

SAMPLED, MEMBERSHIP, EXPOSURE, RELEARNED = range(4)  # as REPORT has them
LEFT_OUT = {
    "status": "NOT_RUN",
    "why": "off",
    **dict.fromkeys(("passed", "level", "figure", "control", "auc", "unseen", "partial")),
}


def attack(index: int, **changes: object) -> dict:
    """A report in which an attack was otherwise."""
    attacks = [{**one, **changes} if i == index else one for i, one in enumerate(REPORT["attacks"])]
    return {"report": {**REPORT, "attacks": attacks}}


def listed(*attacks: dict) -> dict:
    """A report with these attacks."""
    return {"report": {**REPORT, "attacks": attacks}}


def asked(**counts: int) -> dict:
    """A report with other counts of prompts, of a policy that fixes their samples."""
    return {
        "report": {**REPORT, "probes": {**REPORT["probes"], **counts}},
        "parameters": {**POLICY, "probe_samples": 20},
    }


FAILURES = {
    "a probe that is answered": (asked(answered_after=1), "answers a prompt"),
    "fewer samples than the policy's": (asked(samples=1), "another number of samples"),
    "probes that nobody counted": (asked() | {"report": {**REPORT, "probes": None}}, "nobody counted which prompts"),
    "a reported attack that was not run": (
        attack(SAMPLED, **LEFT_OUT),
        "“sampled” was not run, for a reason that does not fit the policy",
    ),
    "a reported attack that is off": (
        attack(SAMPLED, **LEFT_OUT, effect="off"),
        "“report” for the attack “sampled”, which is not listed so",
    ),
    "a blocking attack that succeeded": (attack(MEMBERSHIP, passed=False), "the attack “membership_loss” succeeded"),
    "a blocking attack that was not run": (
        attack(MEMBERSHIP, **LEFT_OUT | {"why": "too_few_unseen_texts"}),
        "“membership_loss” blocks by the policy, and was not run",
    ),
    "a blocking attack that does not apply, and does": (
        attack(MEMBERSHIP, **LEFT_OUT | {"why": "not_applicable"}),
        "“membership_loss” applies to every text",
    ),
    "a blocking attack that only reports": (attack(MEMBERSHIP, effect="report"), "which is not listed so"),
    "an attack that is off and was run": (
        attack(RELEARNED, status="RUN", passed=True, level=0.05 / 3, unseen=60),
        "“relearned” was run, and is off by the policy",
    ),
    "an attack that the policy does not name": (
        listed(*REPORT["attacks"], {**REPORT["attacks"][SAMPLED], "name": "prompts"}),
        "has “off” for the attack “prompts”, which is not listed so",
    ),
    "an attack at a level of its own": (
        attack(SAMPLED, level=0.016),
        "the attack “sampled” was tested at a weaker level than 0.05 for all attacks together",
    ),
    "an attack without a level": (attack(SAMPLED, level=None), "at a weaker level"),
    "an attack that was not run, with scores": (
        attack(EXPOSURE, level=0.05 / 3, unseen=60),
        "“exposure” was not run, and has a result",
    ),
    "an attack beside few texts": (attack(SAMPLED, unseen=19), "too few never-seen texts"),
    "an attack that could not fail": (
        attack(MEMBERSHIP, unseen=60)
        | {"requests": [LINES[0], *(replace(r, reason=NOT_MEMORISED) for r in LINES[1:])]},
        "too few never-seen texts",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_attacks_and_probes_are_those_of_the_policy(tmp_path, issuer, name):
    """The policy is in the log before the run."""
    changes, reason = FAILURES[name]
    refusal = refused(issuer.release(tmp_path / "r", **changes))
    assert (refusal.code, reason in refusal.reason) == (ExitCode.POLICY_FAILURE, True), refusal.reason


@pytest.mark.parametrize("kept", [False, True])
def test_no_reported_attack_is_left_out(tmp_path, issuer, kept):
    """What compute did not measure, the service lists as not run. A list without it is refused."""
    release = issuer.release(tmp_path / "r", **listed(*REPORT["attacks"][1:]))
    verify(release)
    attacks = json.loads(release_payload(release))["predicate"]["verification"]["attacks"]
    assert [(row["effect"], row["why"]) for row in attacks if row["name"] == "sampled"] == [
        ("report", "could_not_be_run")
    ]
    fewer = [row for row in attacks if row["name"] in MANDATORY_ATTACKS or (kept and row["name"] != "sampled")]
    refusal = refused(issuer.changed(release, "verification", "attacks", to=fewer))
    assert (refusal.code, "which is not listed so" in refusal.reason) == (ExitCode.POLICY_FAILURE, True)


def test_no_attack_is_listed_twice(release, issuer):
    """The second row would hide the first."""
    attacks = json.loads(release_payload(release))["predicate"]["verification"]["attacks"]
    refusal = refused(issuer.changed(release, "verification", "attacks", to=[*attacks, attacks[-1]]))
    assert (refusal.code, refusal.reason) == (ExitCode.POLICY_FAILURE, "an attack is listed twice")


def test_a_policy_of_an_earlier_release_names_no_attacks(tmp_path, issuer, monkeypatch):
    """There the list says what each was: one that blocks has not succeeded."""
    monkeypatch.delitem(POLICY, "attacks")
    verify(issuer.release(tmp_path / "r"))
    assert refused(issuer.release(tmp_path / "s", **attack(MEMBERSHIP, passed=False))).code == ExitCode.POLICY_FAILURE


@pytest.mark.parametrize("name", MANDATORY_ATTACKS)
def test_the_criterion_has_one_result(release, issuer, name):
    """PASS beside `passed: false` would be read in two ways."""
    attacks = json.loads(release_payload(release))["predicate"]["verification"]["attacks"]
    changed = [row | {"passed": False} if row["name"] == name else row for row in attacks]
    refusal = refused(issuer.changed(release, "verification", "attacks", to=changed))
    assert (refusal.code, name in refusal.reason) == (ExitCode.POLICY_FAILURE, True)


def test_a_certificate_names_no_attack_that_the_service_lacks(tmp_path, issuer):
    """Compute measures; it does not choose words that are signed. Nor does an issuer."""
    name = "Jane Example lives at 12 Sample Street"
    release = issuer.release(tmp_path / "r", **listed(*REPORT["attacks"], {**REPORT["attacks"][0], "name": name}))
    attacks = json.loads(release_payload(release))["predicate"]["verification"]["attacks"]
    assert {row["name"] for row in attacks} == {*MANDATORY_ATTACKS, *(row["name"] for row in REPORT["attacks"])}
    verify(release)
    refusal = refused(issuer.changed(release, "verification", "attacks", to=[*attacks, {**attacks[0], "name": name}]))
    assert refusal.code == ExitCode.MALFORMED


def test_scores_of_few_are_shown_nowhere(tmp_path, issuer):
    """They are means over texts of people, as EL and MA are."""
    release = issuer.release(tmp_path / "r", contributors=contributors(1))
    attacks = json.loads(release_payload(release))["predicate"]["verification"]["attacks"]
    assert {row["figure"] for row in attacks if row.get("effect") == "block" and row["status"] == "RUN"} == {SUPPRESSED}
    shown = [row | {"figure": "0.300000"} if row["name"] == "sampled" else row for row in attacks]
    refusal = refused(issuer.changed(release, "verification", "attacks", to=shown))
    assert (refusal.code, "fewer than 3 submitters" in refusal.reason) == (ExitCode.POLICY_FAILURE, True)


def test_scores_of_a_part_are_suppressed_by_themselves(tmp_path, issuer):
    """Nobody knows whose texts have a number, so that a mean over these may be one submitter's."""
    release = issuer.release(tmp_path / "r", **attack(SAMPLED, partial=True))
    verify(release)
    attacks = json.loads(release_payload(release))["predicate"]["verification"]["attacks"]
    figures = {row["name"]: row["figure"] for row in attacks if row.get("status") == "RUN" and "figure" in row}
    assert (figures["sampled"], figures["membership_loss"]) == (SUPPRESSED, "-4.600000")
    mixed = [row | {"auc": "0.800000"} if row["name"] == "sampled" else row for row in attacks]
    refusal = refused(issuer.changed(release, "verification", "attacks", to=mixed))
    assert (refusal.code, "suppresses some" in refusal.reason) == (ExitCode.POLICY_FAILURE, True)


@pytest.mark.parametrize(
    ("reason", "result"),
    [("criterion_missed", "FAIL"), ("probe_answered", "PASS"), ("earlier_request_regressed", "PASS"), (None, "PASS")],
)
def test_the_tests_of_the_criterion_failed_if_it_was_missed(issuer, reason, result):
    """A mean over its limit misses it, even if each request is under its own. An answered probe does not."""
    predicate = json.loads(issuer.payload(FILES, report={**REPORT, "reason": reason}))["predicate"]
    rows = [row for row in predicate["verification"]["attacks"] if row["name"] in MANDATORY_ATTACKS]
    assert {row["result"] for row in rows} == {result}
