"""`unlearnd jobs`: commands about jobs."""

from typing import Annotated

import typer

from service.cli.connection import connect
from service.cli.console import AsJson, app, table

jobs = typer.Typer(help="Manage jobs.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")


@jobs.command("retry")
def jobs_retry(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The id of the job.")], as_json: AsJson = False
) -> None:
    """Make the failed requests of a job pending again, once the cause of the failure is removed."""
    table(connect().retry_job(job_id), as_json, "id", "status")
