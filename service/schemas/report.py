"""The one reader and the one writer of reports: from JSON values to `domain.report` and back."""

from collections.abc import Mapping
from typing import TypeVar, cast

from pydantic import TypeAdapter

from service.domain.disclosure import redacted
from service.domain.report import BaselineSummary, ChildReport, JobReport, VersionMetrics

Report = TypeVar("Report", BaselineSummary, ChildReport, JobReport, VersionMetrics)
ADAPTERS: dict[type, TypeAdapter[object]] = {
    kind: TypeAdapter(kind) for kind in (BaselineSummary, ChildReport, JobReport, VersionMetrics)
}


def read_report(kind: type[Report], values: Mapping[str, object]) -> Report:
    """A report of this kind from JSON values; a job's report may have an earlier version.

    Raises:
        pydantic.ValidationError: The values are not such a report.
    """
    if kind is JobReport and "version" not in values:
        values = _upgraded_from_1(values)
    return cast(Report, ADAPTERS[kind].validate_python(values))


def write_report(report: BaselineSummary | ChildReport | JobReport | VersionMetrics) -> dict[str, object]:
    """A report as JSON values."""
    return cast(dict[str, object], ADAPTERS[type(report)].dump_python(report, mode="json"))


def redacted_report(report: Report) -> Report:
    """A report without the numbers that are not public, as purging leaves it."""
    return read_report(type(report), redacted(write_report(report)))


def _upgraded_from_1(values: Mapping[str, object]) -> dict[str, object]:
    """A job's report of version 1 in today's form. It was flat, had `{}` for missing means, and no submitters."""
    findings = {**values, "limits": values["limits"] or None, "before": values["before"] or None}
    return {
        "findings": findings,
        "memorised": values["memorised"],
        "submitters": None,
        "fence": values["fence"],
    }
