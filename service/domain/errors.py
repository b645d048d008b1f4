"""Errors that a caller sees, one tree::

ServiceError           status, code, detail, field; never contains the text of a record
|-- Invalid            422, names the field
|-- Unauthenticated    401
|-- Forbidden          403
|-- NotFound           404
|-- Conflict           409
|-- TooLarge           413
|-- WrongMediaType     415, names the type that is expected
|-- RateLimited        429, says when to try again
`-- Unavailable        503, temporary
    `-- Busy           this process has too much to do
PermanentJobError      no attempt can make the job succeed; carries the reason for giving it up
DatabaseOutdated       storage knows a version that the database lacks: the database was restored from an older backup
LostLease              the fence moved on: the worker must stop and write nothing
IllegalTransition      the table does not allow a state change: a bug, or a lost race
ClientError            the command line cannot reach the service, or the service refused
StorageAway            the object storage does not answer, or refuses: no fault of a job
CannotStart            a setting, an extra or the machine keeps a program from starting; says what to do
"""


class ServiceError(Exception):
    """Root of the errors that become an RFC 9457 problem."""

    status = 500
    code = "internal"
    title = "Internal error"
    headers: dict[str, str] | None = None  # sent with the problem

    def __init__(self, detail: str, *, field: str | None = None, code: str | None = None) -> None:
        """`detail` says what is wrong and never quotes submitted text."""
        super().__init__(detail)
        self.detail, self.field = detail, field
        self.code = code or type(self).code


class Invalid(ServiceError):
    """The request has a value that the service does not accept."""

    status, code, title = 422, "invalid", "The request is not valid"


class Unauthenticated(ServiceError):
    """The API key is missing, unknown or revoked."""

    status, code, title = 401, "unauthenticated", "A valid API key is needed"


class Forbidden(ServiceError):
    """The API key's scopes do not allow this."""

    status, code, title = 403, "forbidden", "The API key may not do this"


class NotFound(ServiceError):
    """Nothing has that name or id."""

    status, code, title = 404, "not_found", "There is no such thing"


class Conflict(ServiceError):
    """The current state does not allow this."""

    status, code, title = 409, "conflict", "Not possible in the current state"


class TooLarge(ServiceError):
    """The body is over the limit."""

    status, code, title = 413, "too_large", "The body is too large"

    def __init__(self, limit: int) -> None:
        """`limit` is the most bytes of a body."""
        super().__init__(f"The body is over {limit} bytes; split the request.", field="body")
        self.headers = {"Connection": "close"}  # the rest of the body is not read


class WrongMediaType(ServiceError):
    """The body is not of the media type that the endpoint takes."""

    status, code, title = 415, "wrong_media_type", "The body has another media type"

    def __init__(self, expected: str) -> None:
        """`expected` is the media type that the endpoint takes."""
        super().__init__(f"Send the body as Content-Type: {expected}.", field="Content-Type")


class RateLimited(ServiceError):
    """The API key has made too many requests."""

    status, code, title = 429, "too_many", "Too many requests"

    def __init__(self, seconds: int) -> None:
        """`seconds` is the time until the API key may make another request."""
        super().__init__("This key has made too many requests; nothing was changed. Try again later.")
        self.headers = {"Retry-After": str(seconds), "RateLimit": f'"key";r=0;t={seconds}'}


class Unavailable(ServiceError):
    """A service that this one needs does not answer."""

    status, code, title = 503, "unavailable", "Temporarily unavailable"

    def __init__(self, detail: str) -> None:
        """`detail` says what does not answer."""
        super().__init__(detail)
        self.headers = {"Retry-After": "5"}


class Busy(Unavailable):
    """This process, or the caller's share of it, is in use."""

    code = "busy"

    def __init__(self, detail: str) -> None:
        """`detail` says what there is too much of."""
        super().__init__(detail)
        self.headers = {"Retry-After": "1"}


class PermanentJobError(Exception):
    """No further attempt can succeed: the job is quarantined with `reason`."""

    def __init__(self, reason: str) -> None:
        """`reason` is a code, never submitted text."""
        super().__init__(reason)
        self.reason = reason


class DatabaseOutdated(Exception):
    """The database is behind storage; reconcile it before any other work."""


class LostLease(Exception):
    """Another worker holds the job under a newer fence; stop and write nothing."""


class IllegalTransition(Exception):
    """A state change that `domain.states` does not list."""


class ClientError(Exception):
    """The service refused, or cannot be reached; the command line shows the message to a person."""


class CannotStart(Exception):
    """A setting, an extra or the machine keeps a program from starting. The message is one line with the remedy."""


class StorageAway(Exception):
    """The object storage does not answer, or refuses."""
