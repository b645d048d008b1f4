"""`unlearnd versions`: the versions of a model."""

from typing import Annotated

import typer

from service.cli.connection import connect
from service.cli.console import AsJson, Most, app, show, table

versions = typer.Typer(help="List and withdraw the versions of a model.", no_args_is_help=True)
app.add_typer(versions, name="versions")

ModelName = Annotated[str, typer.Argument(help="The name of the model.")]


@versions.command("list")
def versions_list(model: ModelName, limit: Most = None, as_json: AsJson = False) -> None:
    """List the versions of a model, newest first."""
    client = connect()
    rows = list(client.list_all(lambda **page: client.versions(model, **page), most=limit))
    table(rows, as_json, "version", "parent", "created_at", "job_id", "withdrawn_at", "withdrawn_reason")


@versions.command("withdraw")
def versions_withdraw(
    model: ModelName,
    version: Annotated[str, typer.Argument(help="The number of the version.")],
    reason: Annotated[str, typer.Option(help="superseded, faulty or revoked.")],
    reopen: Annotated[bool, typer.Option(help="Withdraw it also if completed requests become open again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Withdraw a version: its files are handed out no more. Its certificate stays."""
    answer = connect().withdraw(model, version, reason, reopen=reopen)
    show(answer, as_json, "model", "version", "withdrawn_at", "withdrawn_reason")
