"""`/v1/report`: what happened in a period, in numbers that a regulator asks for."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from service.api.deps import MetricsReader, ServicesDep
from service.api.guard import GuardedRoute
from service.db import period_report
from service.domain.errors import Invalid
from service.schemas.overview import PeriodReport

router = APIRouter(prefix="/v1/report", tags=["health"], route_class=GuardedRoute)
Begin = Annotated[AwareDatetime, Query(alias="from", description="RFC 3339; the first moment of the period")]
End = Annotated[AwareDatetime, Query(alias="to", description="RFC 3339; the first moment after it")]


@router.get("")
def report(services: ServicesDep, _: MetricsReader, begins: Begin, ends: End) -> PeriodReport:
    """Requests that were received in a period, how they ended, and whether their deadlines were kept."""
    if begins >= ends:
        raise Invalid("The period ends before it begins.", field="to")
    with services.db.reading() as session:
        numbers = period_report.report(session, begins, ends)
    return PeriodReport(**numbers._asdict())
