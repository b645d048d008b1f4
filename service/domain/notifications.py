"""Which changes of a request's state are news for whom."""

from service.domain.states import TERMINAL_REQUESTS, RequestStatus

R = RequestStatus
DSR = ("opendsr", "opengdpr")
DSR_WORDS = {
    R.PENDING: "pending", R.COMPLETED: "completed", R.NOT_MEMORISED: "completed", R.CANCELLED: "cancelled",
}  # fmt: skip


def dsr_word(status: str) -> str:
    """Where a request stands, in OpenDSR's four words: one that failed is in progress, for an operator looks at it."""
    return DSR_WORDS.get(RequestStatus(status), "in_progress")


def is_notified(dialect: str | None, before: str, after: str) -> bool:
    """Whether a change is told: to OpenDSR's controllers when their word for it changes, to others when it is over."""
    if dialect in DSR:
        return dsr_word(before) != dsr_word(after)
    return after in TERMINAL_REQUESTS
