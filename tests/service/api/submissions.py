"""Submissions to the API, and what its problems must look like."""

from sqlalchemy import func, select

from service.db.log_tables import AuditEntry
from service.db.tables import DeletionRequest, Model, Record

SECRET = "Zoraida Quill answers to 07700 900123"
REQUESTS = "/v1/deletion-requests"


def body(**changes) -> dict:
    """A valid submission."""
    return {"model": "tiny", "records": [{"text": SECRET}], **changes}


def counts(services) -> tuple[int, ...]:
    """How many rows there are of what a bad input must not make."""
    with services.db.transaction() as session:
        tables = (Model, DeletionRequest, Record, AuditEntry)
        return tuple(session.scalar(select(func.count()).select_from(t)) for t in tables)


def assert_problem(answer, status: int, field: str | None = None) -> dict:
    """A problem document that names the field and repeats nothing of the text."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert {"type", "title", "detail", "code"} <= set(problem)
    if field:
        assert field in [e["field"] for e in problem["errors"]], problem
    assert "Zoraida" not in answer.text
    assert "900123" not in answer.text
    return problem
