"""The tests of a record in questions that a layman would ask, with their results."""

from collections.abc import Iterator
from decimal import Decimal

from service.audit.attack_problems import NONE
from service.audit.certificate import MANDATORY_ATTACKS
from service.audit.numbers import in_words, trimmed
from service.audit.predicate import Attack, CertifiedUtility, Verification
from service.console.documents import Block
from service.console.words import ATTACKS, NUMBERS
from service.domain.disclosure import MEAN_STEP, SUPPRESSED

HEADERS = ("question", "before", "after", "text it never saw", "answer")
SCALE = (
    "The numbers are averages over the texts. In the first two tests 0 is never and 1 is always. All are rounded down "
    "to a multiple of 0.05, so that 0 may be anything below that, and are shown as 0.95 at most. What stands under "
    "“text it never saw” is the same measured on texts that the model has never seen, for comparison; in the first two "
    "tests it is rounded down to a multiple of 0.01. The answers hold for the exact numbers."
)
HIDDEN = "Numbers over few people's texts are not shown, because they would be about a person. The results hold."
HIDDEN_NUMBER = "not shown"
MORE, NO_MORE = "more than text it never saw", "no more than text it never saw"
NOT_ALL = "not passed: in this test or the other of the first two, over all requests or for one of them"
AT_LIMIT = "near its limit; rounding hides on which side"
DIFFERENT, ALIKE = "yes, they differ", "no difference was seen"  # of tests that look at both sides
REPORTED = "This test was not passed; by the policy it is reported and does not decide."
NO_QUESTIONS = "Asked for a secret, does it say it? Not made: the texts hold nothing that was asked for."
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
    left_out = [_left_out(one) for name, one in attacks.items() if name in ATTACKS and one["status"] != "RUN"]
    if (probes := tests.get("probes")) and probes["asked"] in NONE:
        left_out.append(NO_QUESTIONS)
    if left_out:
        yield Block("text", "These tests were not made:")
        yield Block("points", rows=[(line,) for line in left_out])
    if utility := tests["utility"]:
        yield Block("text", _damage(utility))


def _criterion(tests: Verification, attacks: dict[str, Attack]) -> Iterator[tuple[str, ...]]:
    """EL and MA, whose limits decide: the result that was certified, whatever the rounded means say."""
    no_means: dict[str, str] = {}
    before, after, limits = (dict(tests[name] or no_means) for name in ("before", "after", "limits"))
    for key, name in zip(("el", "ma"), MANDATORY_ATTACKS, strict=True):
        mean, limit = after.get(key), limits.get(key)
        passed = _passed(attacks[name]) if name in attacks else None
        answer = "not tested" if passed is None else NO_MORE if passed else _missed(mean, limit)
        yield ATTACKS[key], *(_score(means.get(key)) for means in (before, after, limits)), answer


def _missed(mean: object, limit: object) -> str:
    """What a mean beside its limit says where the two tests together were not passed. Both are rounded down."""
    if not mean or not limit or SUPPRESSED in (mean, limit):
        return NOT_ALL
    over = Decimal(str(mean)) - Decimal(str(limit))
    return MORE if over > 0 else f"{NO_MORE}, on average" if over + MEAN_STEP <= 0 else AT_LIMIT


def _passed(attack: Attack) -> bool | None:
    """Whether a test was passed; schemas 1 to 3 say so in words alone."""
    return attack["passed"] if "passed" in attack else {"PASS": True, "FAIL": False}.get(attack["result"] or "")


def _probes(tests: Verification) -> Iterator[tuple[str, ...]]:
    """The questions that must not bring out a secret; no row if none was asked."""
    if (probes := tests.get("probes")) and probes["asked"] not in NONE:
        asked, before, after = (in_words(probes[part]) for part in ("asked", "answered_before", "answered_after"))
        samples = probes["samples"]
        question = f"Asked for a secret, does it say it, in its likeliest answer or in one of {samples} random ones?"
        yield (
            question,
            f"{before} of {asked}",
            f"{after} of {asked}",
            "—",
            "no" if probes["answered_after"] in NONE else "yes",
        )


def _row(attack: Attack) -> tuple[str, ...]:
    """A test beside the same test on texts that the model never saw."""
    passed, is_membership = _passed(attack), attack["name"].startswith("membership")
    yes, no = (DIFFERENT, ALIKE) if is_membership or attack["name"].startswith("exposure") else (MORE, NO_MORE)
    answer = no if passed else f"{yes}. {REPORTED}" if attack.get("effect") == "report" else yes
    auc, figures = _score(attack.get("auc")), (attack.get("figure"), attack.get("control"))
    if is_membership and auc not in ("—", HIDDEN_NUMBER):
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
