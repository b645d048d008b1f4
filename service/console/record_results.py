"""The tests of a record in questions that a layman would ask, with their results."""

from collections.abc import Iterator
from decimal import Decimal

from service.audit.certificate import MANDATORY_ATTACKS
from service.audit.numbers import trimmed
from service.audit.predicate import Attack, CertifiedUtility, Verification
from service.console.documents import Block
from service.console.words import ATTACKS, NUMBERS
from service.domain.disclosure import SUPPRESSED

HEADERS = ("question", "before", "after", "text it never saw", "answer")
SCALE = (
    "The numbers are averages over the requests. In the first two tests 0 is never and 1 is always, and they are "
    "rounded down to a multiple of 0.05: 0 may be anything below that. Each answer is about the exact number. What "
    "stands under “text it never saw” is the same measured on texts that the model has never seen, for comparison."
)
HIDDEN = "Numbers over few people's texts are not shown, because they would be about a person. The results hold."
HIDDEN_NUMBER = "not shown"
MORE, NO_MORE = "more than text it never saw", "no more than text it never saw"
REPORTED = "more than text it never saw. This test was not passed; by the policy it is reported and does not decide."
LEFT_OUT = {
    "off": "the policy leaves it out",
    "not_applicable": "the texts hold nothing of the kind",
    "too_few_unseen_texts": "there were too few texts that the model never saw",
}


def failed_reports(attacks: list[Attack]) -> list[str]:
    """The questions of the tests that the policy only reports and that were not passed."""
    failed = (attack for attack in attacks if _passed(attack) is False and attack.get("effect") == "report")
    return [ATTACKS.get(attack["name"], attack["name"].replace("_", " ")) for attack in failed]


def result_blocks(tests: Verification) -> Iterator[Block]:
    """A table of all tests that were made, what was left out, and whether the model was damaged."""
    attacks = {attack["name"]: attack for attack in tests["attacks"]}
    rows = [*_criterion(tests, attacks), *_probes(tests)]
    made = [name for name in ATTACKS if name in attacks and attacks[name]["status"] == "RUN"]
    rows += [_row(attacks[name]) for name in made]
    yield Block("table", "The tests", rows, HEADERS)
    yield Block("text", SCALE)
    if SUPPRESSED in (tests["before"] or {}).values():
        yield Block("text", HIDDEN)
    left_out = [attack for name, attack in attacks.items() if name in ATTACKS and attack["status"] != "RUN"]
    if left_out:
        yield Block("text", "These tests were not made:")
        yield Block("points", rows=[(_left_out(attack),) for attack in left_out])
    if utility := tests["utility"]:
        yield Block("text", _damage(utility))


def _criterion(tests: Verification, attacks: dict[str, Attack]) -> Iterator[tuple[str, ...]]:
    """EL and MA, whose limits decide. Where the means are hidden, the result over all requests stands for them."""
    no_means: dict[str, str] = {}
    before, after, limits = (dict(tests[name] or no_means) for name in ("before", "after", "limits"))
    for key, name in zip(("el", "ma"), MANDATORY_ATTACKS, strict=True):
        mean, limit = after.get(key), limits.get(key)
        passed = _passed(attacks[name]) if name in attacks else None
        if mean and limit and mean != SUPPRESSED:
            passed = Decimal(str(mean)) <= Decimal(str(limit))
        answer = "not tested" if passed is None else NO_MORE if passed else MORE
        yield ATTACKS[key], *(_score(means.get(key)) for means in (before, after, limits)), answer


def _passed(attack: Attack) -> bool | None:
    """Whether a test was passed; schemas 1 to 3 say so in words alone."""
    return attack["passed"] if "passed" in attack else {"PASS": True, "FAIL": False}.get(attack["result"] or "")


def _probes(tests: Verification) -> Iterator[tuple[str, ...]]:
    """The questions that must not bring out a secret."""
    if probes := tests.get("probes"):
        before, after = (f"{probes[when]} of {probes['asked']}" for when in ("answered_before", "answered_after"))
        samples = probes["samples"]
        question = f"Asked for a secret, does it say it, in its likeliest answer or in one of {samples} random ones?"
        yield question, before, after, "—", "no" if not probes["answered_after"] else "yes"


def _row(attack: Attack) -> tuple[str, ...]:
    """A test beside the same test on texts that the model never saw."""
    passed = _passed(attack)
    answer = NO_MORE if passed else REPORTED if attack.get("effect") == "report" else "yes"
    auc, figures = _score(attack.get("auc")), (attack.get("figure"), attack.get("control"))
    if attack["name"].startswith("membership") and auc not in ("—", HIDDEN_NUMBER):
        return ATTACKS[attack["name"]], "—", f"right in {auc} of pairs", "0.5 is chance", answer
    question, number = ATTACKS[attack["name"]], NUMBERS.get(attack["name"])
    return f"{question} ({number})" if number else question, "—", *map(_score, figures), answer


def _score(value: object) -> str:
    """A score, or that it is not shown."""
    if value in (None, ""):
        return "—"
    return HIDDEN_NUMBER if value == SUPPRESSED else trimmed(str(value))


def _left_out(attack: Attack) -> str:
    """What a test would have shown, and why it was not made."""
    why = str(attack.get("why") or "off")
    return f"{ATTACKS[attack['name']]} Not made: {LEFT_OUT.get(why, why.replace('_', ' '))}."


def _damage(utility: CertifiedUtility) -> str:
    """Whether the model was damaged, in words and numbers."""
    ratio = Decimal(utility["heldout_ratio"])
    certain = "less" if ratio > 1 else "more"
    kept = (utility["within_budget"], utility.get("within_total_budget"), utility.get("within_neighbour_limit"))
    verdict = "More than the policy allows" if False in kept else "Not more than the policy allows"
    change = abs(ratio - 1) * 100
    near = ""
    if (within := utility.get("within_neighbour_limit")) is not None:
        near = f" On text that is most like the unlearned texts it lost {'no more' if within else 'more'} than it may."
    return (
        f"Was the model damaged? {verdict}. On other text it is {change:.1f} % {certain} certain than before "
        f"(perplexity times {ratio:.3f}; the policy allows times {trimmed(utility['max_ratio'])}).{near}"
    )
