"""Bodies of the answers about everything at once: what needs a look today, and what happened in a period."""

from datetime import date, datetime

from pydantic import BaseModel, Field

from service.schemas.requests import RequestOut


class BacklogOut(BaseModel):
    """What waits for a model, and what becomes of it if its jobs go on as its last ones did."""

    model: str
    requests: int
    per_hour: float | None = Field(description="requests that its last jobs dealt with in an hour; null: none ended")
    ends_at: datetime | None
    late: int = Field(description="how many will be late")


class DueDayOut(BaseModel):
    """The requests that wait and are due on a day, UTC."""

    due_on: date
    requests: int
    late: int


class BacklogDetail(BacklogOut):
    """What waits for a model, by the day of the deadline."""

    days: list[DueDayOut] = Field(description="the earliest first")


class Overview(BaseModel):
    """What is due, waits, runs and has failed."""

    requests: dict[str, int] = Field(description="by status")
    jobs: dict[str, int] = Field(description="that have not ended, by stage")
    overdue: int = Field(description="open or failed requests past their deadline")
    due_soon: int = Field(description="the same with a deadline within UNLEARND_ALERT_DAYS")
    awaiting_approval: int
    failed: int = Field(description="failed requests that were neither retried nor resolved")
    next_due: datetime | None
    slots: int = Field(description="jobs that the compute workers seen lately can run at once")
    backlogs: list[BacklogOut]
    due: list[RequestOut] = Field(description="open or failed requests, the earliest deadline first; at most ten")
    decisions: list[RequestOut] = Field(description="requests that wait for approval; at most ten")
    failures: list[RequestOut] = Field(description="failed requests that somebody waits for; at most ten")


class PeriodReport(BaseModel):
    """What happened to the requests that were received in a period."""

    by_status: dict[str, int] = Field(
        description="`open` if not ended, `nothing_found` if so, `resolved` if it failed and was then dealt with"
    )
    by_law: dict[str, int]
    extended: int
    in_time: int = Field(description="ended on the day of their deadline, or before")
    late: int = Field(description="ended after it")
    overdue: int = Field(description="are past it, and neither ended nor resolved; failed ones are among them")
    median_days: float | None = Field(description="from receipt to end; null if none has ended")
    failures: dict[str, int] = Field(description="by reason")
    versions: int = Field(description="published in the period")
    methods: dict[str, int] = Field(description="the same by method")
    downloads: int = Field(description="API keys that first downloaded files of a version in the period")


class SettingOut(BaseModel):
    """A setting of the API process."""

    variable: str
    value: str = Field(description="here; `***`: hidden")
    meaning: str
