"""The types of the log's entries, as they are read back."""

from typing import TypedDict


class LogState(TypedDict):
    """The size and the root (hex) of the log at a signed checkpoint."""

    size: int
    root: str


class LogEntry(TypedDict, total=False):
    """The members that a reader of the log looks at; `kind` says which of them an entry has."""

    kind: str
    at: str
    ref: str
    refs: list[str]
    due: str
    job: str
    before: LogState
    thresholds: str
    parameters: str
    certificate: str
    overall: str
    parts: list[list[str]]
    reopened: list[str]
