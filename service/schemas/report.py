"""The one reader and the one writer of reports: mappings of JSON in, `domain.report` out, and back."""

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
    """A report of this kind from JSON; a job's report may be of an earlier version.

    Raises:
        pydantic.ValidationError: It is not one.
    """
    if kind is JobReport and "version" not in values:
        values = _upgraded(values)
    return cast(Report, ADAPTERS[kind].validate_python(values))


def write_report(report: BaselineSummary | ChildReport | JobReport | VersionMetrics) -> dict[str, object]:
    """A report as JSON values."""
    return cast(dict[str, object], ADAPTERS[type(report)].dump_python(report, mode="json"))


def redacted_report(report: Report) -> Report:
    """A report without the numbers that are not public: what purging leaves."""
    return read_report(type(report), redacted(write_report(report)))


def _upgraded(values: Mapping[str, object]) -> dict[str, object]:
    """Version 1 was a flat mapping with `{}` where nothing was measured, and nobody counted submitters."""
    findings = {**values, "limits": values["limits"] or None, "before": values["before"] or None}
    return {
        "findings": findings,
        "memorised": values["memorised"],
        "submitters": None,
        "fence": values["fence"],
    }
