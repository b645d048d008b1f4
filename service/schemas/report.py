"""The one reader and the one writer of reports: from JSON values to `domain.report` and back."""

from collections.abc import Mapping
from typing import TypeVar, cast

from pydantic import TypeAdapter

from service.domain.disclosure import SUPPRESSED, redacted
from service.domain.report import REPORT_VERSION, BaselineSummary, ChildReport, JobReport, VersionMetrics

Report = TypeVar("Report", BaselineSummary, ChildReport, JobReport, VersionMetrics)
ADAPTERS: dict[type, TypeAdapter[object]] = {
    kind: TypeAdapter(kind) for kind in (BaselineSummary, ChildReport, JobReport, VersionMetrics)
}


def read_report(kind: type[Report], values: Mapping[str, object]) -> Report:
    """A report of this kind from JSON values; rows may be of an earlier release.

    Raises:
        ValueError: The values are not such a report (pydantic.ValidationError), or a later release made them.
    """
    if kind is JobReport:
        values = values if "version" in values else _upgraded_from_1(values)
        if values["version"] != REPORT_VERSION:
            raise ValueError(f"a report of version {values['version']}; this release reads {REPORT_VERSION}")
    if kind is VersionMetrics:
        values = {**values, "before": _known(values["before"]), "after": _known(values["after"])}
    return cast(Report, ADAPTERS[kind].validate_python(values))


def write_report(report: BaselineSummary | ChildReport | JobReport | VersionMetrics) -> dict[str, object]:
    """A report as JSON values."""
    return cast(dict[str, object], ADAPTERS[type(report)].dump_python(report, mode="json"))


def redacted_report(report: Report) -> Report:
    """A report without the numbers that are not public, as purging leaves it."""
    return read_report(type(report), redacted(write_report(report)))


def _upgraded_from_1(values: Mapping[str, object]) -> dict[str, object]:
    """A job's report of version 1 in today's form. It was flat, and nobody counted submitters."""
    means = {name: _known(values[name]) for name in ("limits", "before", "after")}
    return {
        "findings": {**values, **means},
        "memorised": values["memorised"],
        "submitters": None,
        "fence": values["fence"],
        "version": REPORT_VERSION,
    }


def _known(means: object) -> object:
    """Means, or None where an earlier release wrote `{}` or, taken from a certificate, that they are suppressed."""
    return means if isinstance(means, Mapping) and means and SUPPRESSED not in means.values() else None
