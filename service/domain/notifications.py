"""Which changes of a request's status are news for its submitter."""

from service.domain.states import TERMINAL_REQUESTS, RequestStatus

DSR = ("opendsr", "opengdpr")
DSR_WORDS = {
    RequestStatus.PENDING: "pending",
    RequestStatus.COMPLETED: "completed",
    RequestStatus.NOT_MEMORISED: "completed",
    RequestStatus.CANCELLED: "cancelled",
}


def opendsr_status(status: str) -> str:
    """A request's status in OpenDSR's four words; a failed request is in progress, because an operator looks at it."""
    return DSR_WORDS.get(RequestStatus(status), "in_progress")


def is_notified(dialect: str | None, before: str, after: str) -> bool:
    """Whether the service notifies the submitter of a change of status.

    An OpenDSR controller is notified when OpenDSR's word changes, any other submitter when the request ends, or is open
    again: the version that fulfilled it was withdrawn, or a recheck found that it came back.
    """
    if dialect in DSR:
        return opendsr_status(before) != opendsr_status(after)
    return after in TERMINAL_REQUESTS or before in (RequestStatus.COMPLETED, RequestStatus.NOT_MEMORISED)
