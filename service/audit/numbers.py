"""The results of a certificate: decimal strings, as exact as the disclosure rule allows, or suppressed; verdicts."""

from collections.abc import Sequence
from dataclasses import asdict

from service.audit.predicate import (
    Attack,
    CertifiedEpoch,
    CertifiedMeans,
    CertifiedUtility,
    Limits,
    Quantised,
    Training,
)
from service.domain.attacks import ATTACK_NAMES
from service.domain.disclosure import (
    SUPPRESSED,
    Contributors,
    coarse_limit,
    coarse_mean,
    coarse_threshold,
    disclosed_attack,
    is_disclosed,
    power_of_two,
)
from service.domain.json_types import JsonObject
from service.domain.quantised import QuantisedFinding
from service.domain.report import AttackFinding, Epoch, Findings, Means, ThresholdRow, Utility
from service.domain.states import Outcome


def decimal(value: float) -> str:
    """A number as a decimal string, because JSON readers may change the digits of a number."""
    return f"{value:.6f}"


def trimmed(number: str) -> str:
    """A decimal string without trailing zeros; any other string as it is."""
    return number.rstrip("0").rstrip(".") if "." in number else number


def in_words(count: int | str) -> str:
    """A count, or a range of counts, in words."""
    return str(count).replace("<=", "at most").replace(">", "more than")


def _optional(value: float | None) -> str | None:
    """A number as a decimal string; None stays None."""
    return None if value is None else decimal(value)


def certified_limits(limits: Means | None) -> Limits:
    """The limits of the means, coarse; empty if nothing was measured."""
    if limits is None or limits.el is None or limits.ma is None:
        return {}
    return {"el": decimal(coarse_limit(limits.el)), "ma": decimal(coarse_limit(limits.ma))}


def certified_means(means: Means, contributors: Contributors) -> CertifiedMeans:
    """Means, coarse; the disclosure rule may suppress them."""
    if not is_disclosed(contributors) or means.el is None or means.ma is None:
        return {"el": SUPPRESSED, "ma": SUPPRESSED}
    return {"el": decimal(coarse_mean(means.el)), "ma": decimal(coarse_mean(means.ma))}


def certified_utility(utility: Utility) -> CertifiedUtility:
    """The perplexities as decimal strings."""
    return {
        "heldout_perplexity_before": decimal(utility.heldout_perplexity_before),
        "heldout_perplexity_after": decimal(utility.heldout_perplexity_after),
        "heldout_ratio": decimal(utility.heldout_ratio),
        "retain_perplexity_before": decimal(utility.retain_perplexity_before),
        "retain_perplexity_after": decimal(utility.retain_perplexity_after),
        "retain_ratio": decimal(utility.retain_ratio),
        "max_ratio": decimal(utility.max_ratio),
        "within_budget": utility.within_budget,
        "first_heldout_perplexity": _optional(utility.first_heldout_perplexity),
        "total_ratio": _optional(utility.total_ratio),
        "max_total_ratio": _optional(utility.max_total_ratio),
        "within_total_budget": utility.within_total_budget,
        "max_neighbour_loss": _optional(utility.max_neighbour_loss),
        "within_neighbour_limit": utility.within_neighbour_limit,
    }


def certified_attacks(findings: Findings, parameters: JsonObject, contributors: Contributors) -> list[Attack]:
    """A row for each attack that was measured, or that the policy names; none if nothing was trained.

    A compute worker of an earlier release makes fewer of them. What the service does not have is no attack.
    """
    made = {attack.name: attack for attack in findings.attacks}
    effects = parameters.get("attacks") or {} if made else {}
    assert isinstance(effects, dict)
    for name, effect in effects.items():
        why = "off" if effect == "off" else "could_not_be_run"
        made.setdefault(name, AttackFinding(name, str(effect), "NOT_RUN", why, None))
    return [_attack(made[name], contributors) for name in ATTACK_NAMES if name in made]


def _attack(attack: AttackFinding, contributors: Contributors) -> Attack:
    """What an attack found; its scores are coarse, and the disclosure rule may suppress them."""
    scores = disclosed_attack(asdict(attack), means=is_disclosed(contributors))
    run = attack.status == "RUN"
    return {
        "name": attack.name,
        "status": attack.status,
        "result": ("PASS" if attack.passed else "FAIL") if run else None,
        "passed": attack.passed if run else None,
        "effect": attack.effect,
        "why": attack.why,
        "figure": _score(scores["figure"], run=run),
        "control": _score(scores["control"], run=run),
        "auc": _score(scores["auc"], run=run),
        "level": _optional(attack.level),
        "unseen": attack.unseen or 0,
    }


def _score(value: object, *, run: bool) -> str | None:
    """A score as a decimal string, suppressed if it may not be shown, None if there is none."""
    if not run:
        return None
    return decimal(value) if isinstance(value, float) else SUPPRESSED


def _copy(copy: QuantisedFinding) -> Quantised:
    """What became of a quantised copy."""
    return {
        "scheme": copy.scheme,
        "status": copy.status,
        "result": None if copy.passed is None else "PASS" if copy.passed else "FAIL",
        "why": copy.why,
        "kept": copy.kept,
        "files": [{"name": name, "digest": {"sha256": digest}} for name, digest in copy.digests.items()],
    }


def certified_copies(findings: Findings, parameters: JsonObject) -> list[Quantised]:
    """A line for each quantised copy that the policy asks for; none if there is no version.

    A compute worker of an earlier release makes none.
    """
    made = {copy.scheme: copy for copy in findings.quantised}
    asked = parameters.get("quantise") or [] if findings.outcome == Outcome.PASSED else []
    assert isinstance(asked, list)
    return [
        _copy(made.get(str(scheme)) or QuantisedFinding(str(scheme), "NOT_RUN", "not_made", None)) for scheme in asked
    ]


def certified_training(findings: Findings, contributors: Contributors) -> Training:
    """How training went: the number of epochs, the seconds of each stage, the metrics after each epoch.

    Seconds are rounded up to a power of two, because they grow with the amount of submitted text.
    """
    return {
        "epochs": findings.epochs,
        "seconds": {stage: decimal(power_of_two(seconds)) for stage, seconds in findings.seconds.items()},
        "trajectory": [_epoch(epoch, contributors) for epoch in findings.trajectory],
    }


def _epoch(epoch: Epoch, contributors: Contributors) -> CertifiedEpoch:
    """One epoch of the trajectory; the disclosure rule may suppress its means."""
    means = certified_means(Means(epoch.el, epoch.ma), contributors)
    return {
        "epoch": epoch.epoch,
        "el": means["el"],
        "ma": means["ma"],
        "heldout_perplexity": decimal(epoch.perplexity),
    }


def threshold_ranges(table: Sequence[ThresholdRow]) -> list[dict[str, str | int]]:
    """The table of thresholds in the form that the log holds before the run and the certificate holds after it.

    The table has one row for each length of a submitted text. Exact lengths would reveal how much a person wrote, and
    exact thresholds would reveal the length. So lengths are grouped into ranges that end at powers of two, and the
    numbers are rounded. A range holds the highest value of each column, rounded up to a multiple of `LIMIT_STEP`. Of
    `ma_p1` (the 1st percentile) and `count` it holds the lowest, rounded down; `count` to a power of two.
    """
    ranges: dict[int, list[ThresholdRow]] = {}
    for row in table:
        ranges.setdefault(power_of_two(row.length), []).append(row)
    return [{"length": f"<= {upper}", **_range(rows)} for upper, rows in sorted(ranges.items())]


def _range(rows: Sequence[ThresholdRow]) -> dict[str, str | int]:
    """The numbers of the rows of one range of lengths."""
    highest = {
        name: decimal(coarse_threshold(max(getattr(row, name) for row in rows)))
        for name in ("el_mean", "ma_mean", "el_p95", "ma_p95", "el_max", "ma_max")
    }
    return {
        "n": max(row.n for row in rows),
        "count": power_of_two(min(row.count for row in rows) + 1) // 2,
        "ma_p1": decimal(coarse_limit(min(row.ma_p1 for row in rows))),
        **highest,
    }
