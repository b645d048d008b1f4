"""The log's entries, as they are read back: their types, and a check of a member's type."""

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
    model: str
    number: int
    manifest: str
    reason: str
    failed: list[str]
    reopened: list[str]


def text_in(value: object) -> str:
    """The value, which is a string.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value
