"""Column types that store typed values as JSON."""

from collections.abc import Mapping

from sqlalchemy import Dialect
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator

from service.domain.report import JobReport, VersionMetrics
from service.schemas.report import read_report, write_report


class JobReportColumn(TypeDecorator[JobReport]):
    """A job's report."""

    impl = JSONB(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: JobReport | None, dialect: Dialect) -> dict[str, object] | None:
        """The value as JSON."""
        return write_report(value) if value else None

    def process_result_value(self, value: Mapping[str, object] | None, dialect: Dialect) -> JobReport | None:
        """The typed value."""
        return read_report(JobReport, value) if value else None


class MetricsColumn(TypeDecorator[VersionMetrics]):
    """A version's metrics. A registered model has none; the column then holds an empty object."""

    impl = JSONB
    cache_ok = True

    def process_bind_param(self, value: VersionMetrics | None, dialect: Dialect) -> dict[str, object]:
        """The value as JSON."""
        return write_report(value) if value else {}

    def process_result_value(self, value: Mapping[str, object] | None, dialect: Dialect) -> VersionMetrics | None:
        """The typed value."""
        return read_report(VersionMetrics, value) if value else None
