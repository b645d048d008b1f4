"""Errors that a caller sees, one tree::

ServiceError           status, code, detail, field; never contains text of a record
|-- Invalid            422, names the field
|-- Unauthenticated    401
|-- Forbidden          403
|-- NotFound           404
|-- Conflict           409
|-- TooLarge           413
|-- TooMany            429, says when to come again
`-- Unavailable        503, for now
Hopeless               the job cannot succeed however often it is tried; carries the reason it is given up with
Outdated               storage knows a version that the database does not: it was restored from an older backup
LostLease              the fence moved on: whoever sees this must stop and write nothing
IllegalTransition      a state change that the table does not allow: a bug, or a race that was lost
"""


class ServiceError(Exception):
    """Root of the errors that become an RFC 9457 problem."""

    status = 500
    code = "internal"
    title = "Internal error"
    headers: dict[str, str] | None = None  # sent with the problem

    def __init__(self, detail: str, *, field: str | None = None, code: str | None = None) -> None:
        """Say what is wrong in `detail`, without quoting any submitted text."""
        super().__init__(detail)
        self.detail, self.field = detail, field
        self.code = code or type(self).code


class Invalid(ServiceError):
    """The request says something that cannot be taken."""

    status, code, title = 422, "invalid", "The request is not valid"


class Unauthenticated(ServiceError):
    """No key, an unknown one or a revoked one."""

    status, code, title = 401, "unauthenticated", "A valid API key is needed"


class Forbidden(ServiceError):
    """The key's scopes do not allow this."""

    status, code, title = 403, "forbidden", "The API key may not do this"


class NotFound(ServiceError):
    """Nothing by that name."""

    status, code, title = 404, "not_found", "There is no such thing"


class Conflict(ServiceError):
    """The state of things does not allow this."""

    status, code, title = 409, "conflict", "Not possible in the current state"


class TooLarge(ServiceError):
    """The body is over the limit."""

    status, code, title = 413, "too_large", "The body is too large"


class RateLimited(ServiceError):
    """The key has made too many requests."""

    status, code, title = 429, "too_many", "Too many requests"

    def __init__(self, seconds: int) -> None:
        """Say after how many seconds there is room again."""
        super().__init__("This key has made too many requests; nothing was changed. Try again later.")
        self.headers = {"Retry-After": str(seconds), "RateLimit": f'"key";r=0;t={seconds}'}


class Unavailable(ServiceError):
    """Something that is needed does not answer."""

    status, code, title = 503, "unavailable", "Temporarily unavailable"

    def __init__(self, detail: str) -> None:
        """Say what does not answer."""
        super().__init__(detail)
        self.headers = {"Retry-After": "5"}


class PermanentJobError(Exception):
    """Trying this job again is no use: it is given up with `reason`."""

    def __init__(self, reason: str) -> None:
        """`reason` is a code, never text that was submitted."""
        super().__init__(reason)
        self.reason = reason


class DatabaseOutdated(Exception):
    """The database is behind storage; reconcile before going on."""


class LostLease(Exception):
    """Another worker holds the job under a newer fence; stop and write nothing."""


class IllegalTransition(Exception):
    """A state change that `domain.states` does not list."""


class ClientError(Exception):
    """For the command line: the service refused or cannot be reached; the message is for a person."""
