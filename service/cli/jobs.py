"""`unlearnd jobs`: commands about jobs."""

from typing import Annotated

import typer

from service.cli.connection import connect
from service.cli.console import AsJson, Most, app, show, table

jobs = typer.Typer(help="Look at jobs, stop them, retry their requests.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")

JobId = Annotated[str, typer.Argument(metavar="ID", help="The id of the job.")]


@jobs.command("list")
def jobs_list(
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    stage: Annotated[str | None, typer.Option(help="Only jobs in this stage, such as queued or quarantined.")] = None,
    limit: Most = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    client = connect()
    filters = {name: value for name, value in {"model": model, "stage": stage}.items() if value is not None}
    rows = list(client.list_all(client.jobs, most=limit, **filters))
    table(rows, as_json, "id", "model", "stage", "outcome", "progress", "attempts", "version", "created_at", "reason")


@jobs.command("show")
def jobs_show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job, its stages and attempts, and its metrics so far."""
    job = connect().job(job_id)
    steps = [] if as_json else job.pop("steps", [])
    show(job, as_json)
    if steps:
        table(steps, as_json, "at", "kind", "stage", "outcome", "reason")


@jobs.command("cancel")
def jobs_cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Stop a job before its result is certified. Its requests fail; `jobs retry` makes them pending again."""
    show(connect().cancel_job(job_id), as_json, "id", "stage", "reason")


@jobs.command("retry")
def jobs_retry(job_id: JobId, as_json: AsJson = False) -> None:
    """Make the failed requests of a job pending again, once the cause of the failure is removed."""
    table(connect().retry_job(job_id), as_json, "id", "status")
