"""`unlearnd models`: register models, download certified versions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import connect, download_bars, read_json, server_path
from service.cli.console import AsJson, app, show, table

if TYPE_CHECKING:
    from rich.progress import TaskID

models = typer.Typer(help="Register models, download certified versions.", no_args_is_help=True)
app.add_typer(models, name="models")


@models.command("add")
def models_add(
    name: Annotated[str, typer.Argument(help="The name of the model in the service.")],
    path: Annotated[
        str, typer.Argument(help="A Hugging Face folder on the server, in one of UNLEARND_MODEL_ROOTS, or a hub id.")
    ],
    retain: Annotated[Path, typer.Option(help="Texts on which training keeps the model's abilities.")],
    heldout: Annotated[Path, typer.Option(help="Texts that the model has never seen.")],
    policy: Annotated[Path | None, typer.Option(help="A JSON file. Every field has a default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Register a model as version 0."""
    policy_fields = read_json(policy, "--policy") if policy else {}
    texts = str(retain.resolve()), str(heldout.resolve())
    model = connect().add_model(name, server_path(path), *texts, policy_fields)
    show(model, as_json, "name", "latest")


@models.command("list")
def models_list(as_json: AsJson = False) -> None:
    """List the registered models, each with its newest version."""
    client = connect()
    table(list(client.list_all(client.models)), as_json, "name", "latest")


@models.command("download")
def models_download(
    name: Annotated[str, typer.Argument(help="The name of the model.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write the release to.")],
    version: Annotated[str, typer.Option(help="A version number, or latest.")] = "latest",
    as_json: AsJson = False,
) -> None:
    """Download a release folder. Resumes a download that stopped, and checks every digest."""
    client = connect()
    with download_bars(hidden=as_json) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(path: str, done: int, total: int) -> None:
            if path not in tasks:
                tasks[path] = bars.add_task(path, total=total)
            bars.update(tasks[path], completed=done)

        release = client.download(name, version, folder, progress)
    show({"version": release["version"], "folder": str(folder)}, as_json)
