"""`unlearnd jobs`: look after jobs."""

from typing import Annotated

import typer

from service.cli.connection import connect
from service.cli.console import AsJson, app, table

jobs = typer.Typer(help="Look after jobs.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")


@jobs.command("retry")
def jobs_retry(job_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Put the failed requests of a job that was given up back in line, once its reason is removed."""
    table(connect().retry_job(job_id), as_json, "id", "status")
