"""The conditions of a passed, published release.

Every condition is recomputed from the certificate's numbers; the verdict that it states is not trusted.
"""

import sys
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import TypeVar

from service.audit.attack_problems import ROUNDING, attack_problems, probe_problems, scores
from service.audit.certificate import memorised_count
from service.audit.predicate import CertifiedUtility, Lineage, Method, Predicate, Verification
from service.domain.disclosure import FEWEST_SUBMITTERS, SUPPRESSED
from service.domain.reference_texts import overlaps_too_much

Result = TypeVar("Result")
MAX_NEIGHBOUR_LOSS = "0.03"  # as in the engine; policies of earlier releases name none
TOTAL_BUDGET = Decimal("1.2")  # relative to the budget of one version, where the policy names none; as in the engine


def policy_problems(predicate: Predicate) -> Iterator[str]:
    """Yield each reason why the predicate does not describe a passed, published release."""
    try:
        yield from _verdict_problems(predicate)
        yield from _lineage_problems(predicate["lineage"])
        yield from _limit_problems(predicate["verification"])
        utility = _required(predicate["verification"]["utility"])
        yield from _utility_problems(utility, predicate["method"])
        yield from _total_problems(utility, predicate["method"], predicate["lineage"])
        yield from _neighbour_problems(utility, predicate["method"])
        yield from _reference_text_problems(predicate)
        yield from _disclosure_problems(predicate)
    except (KeyError, TypeError, InvalidOperation, ValueError) as error:
        yield f"the certificate lacks a result or holds a malformed one ({type(error).__name__})"


def _required(result: Result | None) -> Result:
    """A result that every published release has.

    Raises:
        TypeError: The certificate has none.
    """
    if result is None:
        raise TypeError("a result is missing")
    return result


def _verdict_problems(predicate: Predicate) -> Iterator[str]:
    """Every request and every mandatory attack passed, and something was trained and published."""
    if predicate["artefacts"]["published"] is not True:
        yield "the certificate is about a run that was not published"
    if predicate["overall"] != "PASS":
        yield "the certificate's overall verdict is not PASS"
    if not predicate["verification"]["thresholds"]:
        yield "the certificate has no thresholds"
    if not predicate["requests"]:
        yield "the certificate names no request"
    if predicate["forget_set"]["requests"] != len(predicate["requests"]):
        yield "the certificate states another number of requests than it lists"
    yield from (f"request {r['ref']} did not pass" for r in predicate["requests"] if r["verdict"] != "PASS")
    earlier = _required(predicate["verification"]["earlier"])
    yield from (f"earlier request {ref} came back" for ref in earlier["regressed"])
    if not min(earlier["requests"], 1) <= earlier.get("exact", earlier["requests"]) <= earlier["requests"]:
        yield "the certificate states EL for no earlier request, or for more than it has"
    yield from attack_problems(predicate)
    yield from probe_problems(predicate["verification"], predicate["method"])
    yield from _quantised_problems(predicate["verification"], predicate["method"])
    yield from _reference_problems(predicate["method"])
    if not memorised_count(r["reason"] for r in predicate["requests"]) or predicate["training"]["epochs"] < 1:
        yield "nothing was trained on, so there was nothing to publish"


def _quantised_problems(verification: Verification, method: Method) -> Iterator[str]:
    """Each quantised copy that the policy asks for is listed, and has a result if it was tested, and files.

    Copies do not decide whether a version is published: one that fails is listed with FAIL.
    """
    listed = verification.get("quantised")
    if listed is None:
        return
    if [copy["scheme"] for copy in listed] != list(method["parameters"].get("quantise") or ()):
        yield "the quantised copies are not those that the policy asks for"
    for copy in listed:
        tested = copy["status"] == "RUN"
        if tested != (copy["result"] is not None) or tested != bool(copy["files"]) or tested != (copy["why"] is None):
            yield f"the quantised copy {copy['scheme']} has a result without a test, or the reverse"


def _neighbour_problems(utility: CertifiedUtility, method: Method) -> Iterator[str]:
    """What is most like the forgotten lost no more than the policy's limit; schemas 1 to 3 have no such limit.

    How much it lost is not stated: the figures would tell which texts are most like the submitted ones.
    """
    if "max_neighbour_loss" not in utility:
        return
    parameters = method["parameters"]
    if utility["max_neighbour_loss"] is None and "max_neighbour_loss" not in parameters:
        return  # of a job that an earlier release measured
    fixed = parameters.get("max_neighbour_loss", MAX_NEIGHBOUR_LOSS)
    if abs(Decimal(_required(utility["max_neighbour_loss"])) - Decimal(fixed)) > ROUNDING:
        yield "the limit of what the neighbours may lose is not the policy's"
    if utility["within_neighbour_limit"] is not True:
        yield "retain text, or a set of neighbours, that is most like the records or probes lost more than its limit"


def _reference_problems(method: Method) -> Iterator[str]:
    """A distillation has a reference, and nothing else has. A reference that began from a base names it."""
    if (method.get("reference") is not None) != (method["parameters"].get("loss") == "distil"):
        yield "the reference does not fit the loss"
    if (method.get("reference") == "base") != (method.get("base") is not None):
        yield "the base does not fit the reference"


def _lineage_problems(lineage: Lineage) -> Iterator[str]:
    """The version follows its parent and supersedes it. Versions between the two were withdrawn."""
    if (lineage["version"] or 0) <= lineage["parent_version"] or lineage["supersedes"] != lineage["parent_version"]:
        yield "broken lineage: the version does not follow its parent"
    if (lineage["parent_certificate"] is None) != (lineage["parent_version"] == 0):
        yield "broken lineage: every parent except the registered model must have a certificate"


def _limit_problems(verification: Verification) -> Iterator[str]:
    """The means are within their limits, and the limits within the thresholds; suppressed means cannot be compared."""
    limits = verification["limits"]
    for name in ("el", "ma"):
        if Decimal(limits[name]) > max(Decimal(row[f"{name}_mean"]) for row in verification["thresholds"]):
            yield f"the limit of mean {name.upper()} is over every threshold"
        mean = _required(verification["after"])[name]
        if mean != SUPPRESSED and not Decimal(mean) <= Decimal(limits[name]):
            yield f"mean {name.upper()} {mean} is over the held-out mean {limits[name]}"


def _utility_problems(utility: CertifiedUtility, method: Method) -> Iterator[str]:
    """The perplexity ratio follows from the perplexities and is within the budget that was fixed before the run."""
    before, after, ratio, budget = (
        Decimal(utility[name])
        for name in ("heldout_perplexity_before", "heldout_perplexity_after", "heldout_ratio", "max_ratio")
    )
    if abs(budget - Decimal(method["parameters"]["max_perplexity_ratio"])) > ROUNDING:
        yield "the utility budget is not the policy's"
    if abs(after / before - ratio) > ROUNDING * (1 + ratio):
        yield "the perplexity ratio does not follow from the perplexities"
    if not ratio <= budget or utility["within_budget"] is not True:
        yield f"held-out perplexity ratio {ratio} is over {budget}"


def _total_problems(utility: CertifiedUtility, method: Method, lineage: Lineage) -> Iterator[str]:
    """The same for all versions together, relative to version 0; schemas 1 and 2 have no such budget."""
    if "total_ratio" not in utility:
        return
    first, ratio, budget = (
        Decimal(_required(utility[name])) for name in ("first_heldout_perplexity", "total_ratio", "max_total_ratio")
    )
    before, after = Decimal(utility["heldout_perplexity_before"]), Decimal(utility["heldout_perplexity_after"])
    parameters = method["parameters"]
    fixed = parameters.get("max_total_perplexity_ratio")
    fixed = TOTAL_BUDGET * Decimal(parameters["max_perplexity_ratio"]) if fixed is None else Decimal(fixed)
    if abs(budget - fixed) > ROUNDING:
        yield "the utility budget of all versions is not the policy's"
    if lineage["parent_version"] == 0 and first != before:
        yield "the perplexity of version 0 is not the parent's, which is version 0"
    if abs(after / first - ratio) > ROUNDING * (1 + ratio):
        yield "the perplexity ratio of all versions does not follow from the perplexities"
    if not ratio <= budget or utility["within_total_budget"] is not True:
        yield f"held-out perplexity ratio {ratio} of all versions is over {budget}"


def _reference_text_problems(predicate: Predicate) -> Iterator[str]:
    """The held-out texts, which set the thresholds, are not the retain texts, which the run trained on."""
    texts = {texts["role"]: texts for texts in predicate["corpora"]}
    overlap = predicate["verification"].get("heldout_overlap")
    same = texts["retain"]["sha256"] == texts["heldout"]["sha256"]
    if same or (overlap is not None and overlaps_too_much(overlap, texts["heldout"]["records"])):
        yield "the held-out texts, which set the thresholds, are also retain texts"


def _submitters(predicate: Predicate) -> int:
    """The upper end of the certificate's range of distinct submitters; schema 1 has no range and counted requests."""
    submitters = predicate["forget_set"].get("submitters")
    if submitters is None:
        return memorised_count(request["reason"] for request in predicate["requests"])
    return int(submitters.removeprefix("<= ")) if submitters.startswith("<= ") else sys.maxsize


def _disclosure_problems(predicate: Predicate) -> Iterator[str]:
    """A certificate shows all of its means or none, and of an attack all scores or none; about few submitters none."""
    verification = predicate["verification"]
    means = {
        _required(means)[name]
        for means in (verification["before"], verification["after"], *predicate["training"]["trajectory"])
        for name in ("el", "ma")
    }
    rows = [{score for score in scores(attack) if score is not None} for attack in verification["attacks"]]
    if means.union(*rows) == {SUPPRESSED}:
        return
    if _submitters(predicate) < FEWEST_SUBMITTERS:
        yield f"the certificate shows a mean over fewer than {FEWEST_SUBMITTERS} submitters"
    if SUPPRESSED in means or any(SUPPRESSED in row and len(row) > 1 for row in rows):
        yield "the certificate suppresses some of its means and shows others"
