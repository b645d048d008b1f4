"""What an operator looks at first."""

from datetime import UTC, datetime, timedelta

from tests.service.conftest import submit
from tests.service.jobs import fail_what_waits


def test_an_overview_says_what_is_due_and_what_is_owed(api, services, model, new_key):
    """The earliest deadline comes first, and a failed request is owed like an open one."""
    now = datetime.now(UTC)
    failed = submit(api)["id"]
    fail_what_waits(services, "utility_budget_exceeded")
    late = submit(api, received_at=(now - timedelta(days=60)).isoformat())["id"]
    soon = submit(api, received_at=(now - timedelta(days=27)).isoformat())["id"]
    seen = api.get("/v1/overview").json()
    assert (seen["overdue"], seen["due_soon"], seen["failed"], seen["awaiting_approval"]) == (1, 1, 1, 0)
    assert [item["id"] for item in seen["due"]] == [late, soon, failed]
    assert [item["id"] for item in seen["failures"]] == [failed]
    assert seen["requests"] == {"failed": 1, "pending": 2}
    (backlog,) = seen["backlogs"]
    assert (backlog["model"], backlog["requests"], backlog["late"]) == (
        "tiny",
        2,
        2 if backlog["ends_at"] is None else 1,
    )
    auditor = api.get("/v1/overview", headers={"Authorization": f"Bearer {new_key('audit')}"}).json()
    assert (auditor["overdue"], auditor["due"], auditor["failures"]) == (1, [], [])
    own = {"Authorization": f"Bearer {new_key('submit')}"}
    assert api.get("/v1/overview", headers=own).status_code == 403
