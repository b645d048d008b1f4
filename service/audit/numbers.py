"""The numbers of a certificate: decimal strings, ranges of lengths, and means that the disclosure rule may suppress."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

from service.audit.predicate import CertifiedEpoch, CertifiedMeans, CertifiedUtility, Limits, Training
from service.domain.disclosure import suppressed
from service.domain.report import Epoch, Findings, Means, ThresholdRow, Utility

Value = TypeVar("Value")


def decimal(value: float) -> str:
    """A number as a decimal string, because JSON readers may change the digits of a number."""
    return f"{value:.6f}"


def _optional(value: float | None) -> str | None:
    """A number as a decimal string; None stays None."""
    return None if value is None else decimal(value)


def decimals(values: Mapping[str, Value]) -> dict[str, Value | str]:
    """The same mapping with every float as a decimal string."""
    return {k: decimal(v) if isinstance(v, float) else v for k, v in values.items()}


def certified_limits(limits: Means | None) -> Limits:
    """The limits of the means as decimal strings; empty if nothing was measured."""
    if limits is None:
        return {}
    values = decimals(asdict(limits))
    return {"el": values["el"], "ma": values["ma"]}


def certified_means(means: Means, submitters: int) -> CertifiedMeans:
    """Means as decimal strings; the disclosure rule may suppress them."""
    values = suppressed(decimals(asdict(means)), submitters)
    return {"el": values["el"], "ma": values["ma"]}


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
    }


def certified_training(findings: Findings, submitters: int) -> Training:
    """How training went: the number of epochs, the seconds of each stage, the metrics after each epoch."""
    return {
        "epochs": findings.epochs,
        "seconds": {stage: decimal(seconds) for stage, seconds in findings.seconds.items()},
        "trajectory": [_epoch(epoch, submitters) for epoch in findings.trajectory],
    }


def _epoch(epoch: Epoch, submitters: int) -> CertifiedEpoch:
    """One epoch of the trajectory; the disclosure rule may suppress its means."""
    means = certified_means(Means(epoch.el, epoch.ma), submitters)
    return {
        "epoch": epoch.epoch,
        "el": means["el"],
        "ma": means["ma"],
        "heldout_perplexity": decimal(epoch.perplexity),
    }


def threshold_ranges(table: Sequence[ThresholdRow]) -> list[dict[str, str | int]]:
    """The table of thresholds in the form that the log holds before the run and the certificate holds after it.

    The table has one row for each length of a submitted text. Exact lengths would reveal how much a person wrote, so
    lengths are grouped into ranges that end at powers of two. A range holds the highest value of each column, except
    for `count` and `ma_p1` (the 1st percentile), where it holds the lowest.
    """
    ranges: dict[int, list[dict[str, str | int]]] = {}
    for row in table:
        ranges.setdefault(1 << (row.length - 1).bit_length(), []).append(decimals(asdict(row)))
    lowest = ("count", "ma_p1")
    return [
        {
            name: f"<= {upper}" if name == "length" else (min if name in lowest else max)(row[name] for row in rows)
            for name in rows[0]
        }
        for upper, rows in sorted(ranges.items())
    ]
