"""What a record must show to be of a passed, published release: recomputed from its numbers, never believed."""

import sys
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation

from service.audit.certificate import MANDATORY_ATTACKS, memorised_count
from service.domain.disclosure import FEWEST_SUBMITTERS, SUPPRESSED, is_disclosed
from service.domain.json_types import JsonObject

ROUNDING = Decimal("0.00001")


def policy_problems(predicate: JsonObject) -> Iterator[str]:
    """Every reason why this predicate is not of one; nothing if it is."""
    try:
        yield from _verdict_problems(predicate)
        yield from _lineage_problems(predicate["lineage"])
        few = not is_disclosed(_submitters(predicate))
        yield from _limit_problems(predicate["verification"], few=few)
        yield from _utility_problems(predicate["verification"]["utility"], predicate["method"]["parameters"])
        yield from _disclosure_problems(predicate, few=few)
    except (KeyError, TypeError, InvalidOperation, ValueError) as error:
        yield f"the record lacks or garbles a result ({type(error).__name__})"


def _verdict_problems(predicate: JsonObject) -> Iterator[str]:
    if predicate["artefacts"]["published"] is not True:
        yield "the record is of a run that was not published"
    if not predicate["verification"]["thresholds"]:
        yield "the record has no thresholds"
    if not predicate["requests"]:
        yield "the record names no request"
    if predicate["forget_set"]["requests"] != len(predicate["requests"]):
        yield "the record names another number of requests than it is of"
    yield from (f"request {r['ref']} did not pass" for r in predicate["requests"] if r["verdict"] != "PASS")
    yield from (f"earlier request {ref} came back" for ref in predicate["verification"]["earlier"]["regressed"])
    attacks = {attack["name"]: (attack["status"], attack["result"]) for attack in predicate["verification"]["attacks"]}
    for name in MANDATORY_ATTACKS:
        if attacks.get(name) != ("RUN", "PASS"):
            yield f"the attack “{name}” was not run, or succeeded"
    if not memorised_count(r["reason"] for r in predicate["requests"]) or predicate["training"]["epochs"] < 1:
        yield "nothing was trained on, so there was nothing to publish"
    if predicate["overall"] != "PASS":
        yield "the record's overall verdict is not PASS"


def _lineage_problems(lineage: JsonObject) -> Iterator[str]:
    if lineage["version"] != lineage["parent_version"] + 1 or lineage["supersedes"] != lineage["parent_version"]:
        yield "broken lineage: the version does not follow its parent"
    if (lineage["parent_certificate"] is None) != (lineage["parent_version"] == 0):
        yield "broken lineage: every parent but the registered model has a certificate"


def _limit_problems(verification: JsonObject, *, few: bool) -> Iterator[str]:
    """Means over their limits, limits over what the thresholds allow."""
    after, limits = verification["after"], verification["limits"]
    for name in ("el", "ma"):
        if Decimal(limits[name]) > max(Decimal(t[f"{name}_mean"]) for t in verification["thresholds"]):
            yield f"the limit of mean {name.upper()} is over every threshold"
        if not few and not Decimal(after[name]) <= Decimal(limits[name]):
            yield f"mean {name.upper()} {after[name]} is over the held-out mean {limits[name]}"


def _utility_problems(utility: JsonObject, parameters: JsonObject) -> Iterator[str]:
    """The ratio is what the perplexities give, and at or under the budget that was fixed before the run."""
    before, after, ratio, budget = (
        Decimal(utility[name])
        for name in ("heldout_perplexity_before", "heldout_perplexity_after", "heldout_ratio", "max_ratio")
    )
    if budget != Decimal(parameters["max_perplexity_ratio"]):
        yield "the utility budget is not the policy's"
    if abs(after / before - ratio) > ROUNDING * (1 + ratio):
        yield "the perplexity ratio is not that of the perplexities"
    if not ratio <= budget or utility["within_budget"] is not True:
        yield f"held-out perplexity ratio {ratio} is over {budget}"


def _submitters(predicate: JsonObject) -> int:
    """The most distinct submitters that the certificate's range allows; certificates of schema 1 counted requests."""
    told = predicate["forget_set"].get("submitters")
    if told is None:
        return memorised_count(request["reason"] for request in predicate["requests"])
    return int(told.removeprefix("<= ")) if told.startswith("<= ") else sys.maxsize


def _disclosure_problems(predicate: JsonObject, *, few: bool) -> Iterator[str]:
    """Means of few submitters must not be shown: each request's own verdict stands alone."""
    verification = predicate["verification"]
    shown = [
        means[name]
        for means in (verification["before"], verification["after"], *predicate["training"]["trajectory"])
        for name in ("el", "ma")
    ]
    if few and set(shown) != {SUPPRESSED}:
        yield f"a mean is shown, though it is of fewer than {FEWEST_SUBMITTERS} submitters"
