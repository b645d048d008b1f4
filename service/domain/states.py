"""The state machine, one table each for requests and jobs.

    request -> batch -> unlearn -> merge -> verify -> certify -> publish

Verification stands behind the merge because what is verified is the merged artefact read back from disk, and
certification before publication so that a version appears together with its certificate or not at all, and a
run that failed has its record too.
"""

from collections.abc import Mapping
from enum import StrEnum

from service.domain.errors import IllegalTransition


class RequestStatus(StrEnum):
    """Where a deletion request stands."""

    PENDING = "pending"
    BATCHED = "batched"
    UNLEARNING = "unlearning"
    VERIFYING = "verifying"
    PUBLISHING = "publishing"
    COMPLETED = "completed"
    NOT_MEMORISED = "not_memorised"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    FAILED = "failed"


class Hold(StrEnum):
    """Why a pending request may not be batched yet."""

    RESOLVE = "resolve"
    APPROVAL = "approval"


class Stage(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    UNLEARN = "unlearn"
    MERGE = "merge"
    VERIFY = "verify"
    CERTIFY = "certify"
    PUBLISH = "publish"
    DONE = "done"
    QUARANTINED = "quarantined"


class Outcome(StrEnum):
    """How a job's tests ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_MEMORISED = "not_memorised"
    REJECTED = "rejected"


class RecheckOutcome(StrEnum):
    """How a recheck of a model's earlier requests ended."""

    PASSED = "passed"
    REOPENED = "reopened"  # some came back, and are pending again
    INCOMPLETE = "incomplete"  # a shard was given up


R, S = RequestStatus, Stage
_ENDS = {R.NOT_MEMORISED, R.REJECTED, R.FAILED, R.PENDING}  # pending: the batch was split, or its parent withdrawn

REQUEST_TRANSITIONS: dict[RequestStatus, set[RequestStatus]] = {
    R.PENDING: {R.BATCHED, R.CANCELLED, R.REJECTED, R.COMPLETED},  # completed: nothing was found
    R.BATCHED: {R.UNLEARNING, *_ENDS},
    R.UNLEARNING: {R.VERIFYING, *_ENDS},
    R.VERIFYING: {R.PUBLISHING, R.UNLEARNING, *_ENDS},
    R.PUBLISHING: {R.COMPLETED, *_ENDS},
    R.COMPLETED: {R.PENDING},  # the version that fulfilled it was withdrawn, or a recheck found that it came back
    R.NOT_MEMORISED: {R.PENDING},  # the version that it was tested on was withdrawn
    R.CANCELLED: set(),
    R.REJECTED: set(),
    R.FAILED: {R.PENDING},  # an operator's retry
}
STAGE_TRANSITIONS: dict[Stage, set[Stage]] = {
    S.QUEUED: {S.UNLEARN, S.QUARANTINED},
    S.UNLEARN: {S.MERGE, S.CERTIFY, S.QUARANTINED},
    S.MERGE: {S.VERIFY, S.CERTIFY, S.QUARANTINED},
    S.VERIFY: {S.CERTIFY, S.QUARANTINED},
    S.CERTIFY: {S.PUBLISH, S.DONE, S.QUARANTINED},
    S.PUBLISH: {S.DONE, S.CERTIFY, S.QUARANTINED},
    S.DONE: set(),
    S.QUARANTINED: set(),  # an operator's retry puts its requests into a new job
}
# What a database that was restored from an older backup is told by storage: how requests had ended, and which jobs of
# then are void. These moves skip what happened in between.
_RELEASED = {R.BATCHED, R.UNLEARNING, R.VERIFYING, R.PUBLISHING}
_OPEN = {R.PENDING, *_RELEASED}
RESTORE_TRANSITIONS: dict[RequestStatus, set[RequestStatus]] = {
    **{status: {R.COMPLETED, R.NOT_MEMORISED, R.FAILED} for status in _OPEN},
    **{status: {R.PENDING, R.COMPLETED, R.NOT_MEMORISED, R.FAILED} for status in _RELEASED},
    R.FAILED: {R.COMPLETED, R.NOT_MEMORISED},
}
RESTORE_STAGE_TRANSITIONS: dict[Stage, set[Stage]] = {S.QUEUED: {S.DONE}}  # a job that only its certificate knows
TERMINAL_REQUESTS = frozenset({R.COMPLETED, R.NOT_MEMORISED, R.CANCELLED, R.REJECTED, R.FAILED})
TERMINAL_STAGES = frozenset({S.DONE, S.QUARANTINED})
COMPUTE_STAGES = frozenset({S.QUEUED, S.UNLEARN, S.MERGE, S.VERIFY})
CONTROL_STAGES = frozenset({S.CERTIFY, S.PUBLISH})
REQUEST_STATUS_AT: dict[Stage, RequestStatus] = {
    S.UNLEARN: R.UNLEARNING,
    S.MERGE: R.UNLEARNING,
    S.VERIFY: R.VERIFYING,
    S.CERTIFY: R.VERIFYING,
    S.PUBLISH: R.PUBLISHING,
}


def check_request(
    current: str, target: RequestStatus, table: Mapping[RequestStatus, set[RequestStatus]] = REQUEST_TRANSITIONS
) -> None:
    """Allow `current -> target` for a request.

    Raises:
        IllegalTransition: The table does not list it.
    """
    if target not in table.get(RequestStatus(current), ()):
        raise IllegalTransition(f"request: {current} -> {target}")


def check_stage(current: str, target: Stage, table: Mapping[Stage, set[Stage]] = STAGE_TRANSITIONS) -> None:
    """Allow `current -> target` for a job.

    Raises:
        IllegalTransition: The table does not list it.
    """
    if target not in table.get(Stage(current), ()):
        raise IllegalTransition(f"job: {current} -> {target}")


WITHDRAWAL_REASONS = ("superseded", "faulty", "revoked")  # why a version is no longer handed out
