"""The members of the service's answers that the client and the command line read; an answer has more members."""

from typing import NotRequired, TypedDict

from service.domain.json_types import JsonObject


class RequestAnswer(TypedDict):
    """A deletion request."""

    id: str
    status: str
    job_id: str | None
    verdict: str | None
    version: int | None
    reason: str | None
    finished_at: str | None
    waits_for: str | None


class BulkResult(TypedDict):
    """The result of a request of a bulk submission; an accepted one has `id` and `receipt`, another has `problem`."""

    index: int
    status: int
    id: NotRequired[str]
    receipt: NotRequired[JsonObject]
    problem: NotRequired[JsonObject]


class VersionFile(TypedDict):
    """A file of a release folder, as a version lists it."""

    path: str
    size: int
    sha256: str


class VersionAnswer(TypedDict):
    """A published version and its files; which metrics it has depends on the caller."""

    model: str
    version: int
    files: list[VersionFile]
    metrics: JsonObject


class CorpusAnswer(TypedDict):
    """A corpus, and how much of it is indexed."""

    name: str
    state: str
    records: int
    progress: float
    reason: str | None


class MatchAnswer(TypedDict):
    """A text that a request would unlearn; a submitted text has no number."""

    match: int | None
    kind: str
    text: str


class EventData(TypedDict, total=False):
    """The data of a job's event; its kind says which members it has."""

    stage: str
    progress: float
    epoch: int
    ma: float | None
    ma_limit: float
