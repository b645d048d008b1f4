"""What happened to a request, or to a job, in order."""

from typing import Any, TypedDict

from service.console.words import reason, stage, status

STAGES = {  # the stage that a job comes to -> what that says about the one before
    "merge": "Training ended",
    "verify": "The test of the changed model began",
    "certify": "The test ended",
    "publish": "The record was signed",
}


class Step(TypedDict):
    """A step: when, what, more about it, a link (path, words), and how it looks."""

    at: str | None
    what: str
    more: str
    link: tuple[str, str] | None
    kind: str


def _step(at: str | None, what: str, more: str = "", link: tuple[str, str] | None = None, kind: str = "") -> Step:
    return {"at": at, "what": what, "more": more, "link": link, "kind": kind}


def request_steps(request: dict[str, Any], job: dict[str, Any] | None) -> list[Step]:
    """What happened to a request; `job` is the one that it is in."""
    steps = [
        _step(request["received_at"], "The controller received it"),
        _step(request["accepted_at"], "This service accepted it"),
    ]
    if request["searched_at"]:
        steps.append(_step(request["searched_at"], "The person was looked up in the training data"))
    for decision in request["decisions"] or []:
        why = reason(decision["reason"])
        steps.append(_step(decision["at"], f"{decision['decision'].capitalize()} by {decision['name']}", why))
    if job:
        steps += _in_job(job, max(job["created_at"], *(step["at"] or "" for step in steps)))
    if request["finished_at"]:
        steps.append(_end(request, job))
    if request["resolved_at"]:
        steps.append(_step(request["resolved_at"], "Resolved by an operator", reason(request["resolved_reason"])))
    steps += [_callback(callback) for callback in request["callbacks"]]
    return sorted(steps, key=lambda step: step["at"] or "9999")


def _in_job(job: dict[str, Any], taken_at: str) -> list[Step]:
    """What happened to a request in its job: the last time that the job came to each stage.

    A job that waited may have taken it in after it was made: at `taken_at` or later.
    """
    link = (f"/console/jobs/{job['id']}", "the job")
    steps = [_step(taken_at, "A job took it", link=link)]
    if job["started_at"]:
        steps.append(_step(job["started_at"], "A worker began", f"It starts from version {job['parent']}."))
    reached = {step["stage"]: step["at"] for step in job["steps"] if step["kind"] == "stage"}
    steps += [_step(reached[name], what) for name, what in STAGES.items() if name in reached]
    if not job["finished_at"]:
        now = f"The job is at: {stage(job['stage'])}, {job['progress']:.0%}."
        steps.append(_step(None, now, link=link, kind="now"))
    return steps


def _end(request: dict[str, Any], job: dict[str, Any] | None) -> Step:
    """How a request ended."""
    record = (f"/console/records/{job['id']}", "the record") if job and job["stage"] == "done" else None
    why = f"Version {request['version']} fulfils it." if request["version"] else reason(request["reason"])
    return _step(request["finished_at"], "It ended", why, record, request["status"])


def _callback(callback: dict[str, Any]) -> Step:
    """What became of a callback."""
    name, attempts = status(callback["status"]), f"Attempts: {callback['attempts']}."
    if callback["delivered_at"]:
        return _step(callback["delivered_at"], f"The submitter's system was told: {name}")
    if callback["given_up"]:
        return _step(None, f"The submitter's system was not told: {name}", f"Given up. {attempts}", kind="failed")
    return _step(None, f"The submitter's system is still to be told: {name}", attempts)


def job_steps(job: dict[str, Any]) -> list[Step]:
    """The stages and attempts of a job."""
    return [_job_step(step) for step in job["steps"]]


def _job_step(step: dict[str, Any]) -> Step:
    """A stage that the job came to, an attempt that ended, or the job's end."""
    why = reason(step["reason"])
    if step["kind"] == "stage":
        return _step(step["at"], stage(step["stage"]))
    if step["kind"] == "retry":
        return _step(step["at"], "An attempt ended, and the job is tried again", why, kind="failed")
    return _step(step["at"], f"The job ended: {str(step['outcome']).replace('_', ' ')}", why, kind="now")
