"""The state tables of requests and jobs."""

import pytest

from service.domain.errors import IllegalTransition
from service.domain.states import (
    REQUEST_TRANSITIONS,
    STAGE_TRANSITIONS,
    TERMINAL_REQUESTS,
    RequestStatus,
    Stage,
    check_request,
    check_stage,
)


@pytest.mark.parametrize("current", RequestStatus)
@pytest.mark.parametrize("target", RequestStatus)
def test_only_the_table_moves_requests(current, target):
    """Every pair that the table does not list raises."""
    if target in REQUEST_TRANSITIONS[current]:
        check_request(current, target)
    else:
        with pytest.raises(IllegalTransition):
            check_request(current, target)


def test_every_request_state_reaches_an_end():
    """From each state that is not terminal some path leads to a terminal one; a job's stages likewise."""
    for table, ends in ((REQUEST_TRANSITIONS, TERMINAL_REQUESTS), (STAGE_TRANSITIONS, {Stage.DONE, Stage.QUARANTINED})):
        for state in table:
            seen, todo = set(), [state]
            while todo:
                current = todo.pop()
                if current not in seen:
                    seen.add(current)
                    todo += table[current]
            assert seen & ends


def test_a_cancelled_request_stays_cancelled():
    """No way out of cancelled and rejected; from the other ends only back to pending."""
    for state in TERMINAL_REQUESTS:
        again = state not in (RequestStatus.CANCELLED, RequestStatus.REJECTED)
        assert REQUEST_TRANSITIONS[state] == ({RequestStatus.PENDING} if again else set())
    with pytest.raises(IllegalTransition):
        check_stage(Stage.DONE, Stage.QUEUED)
