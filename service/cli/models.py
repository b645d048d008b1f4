"""`unlearnd models`: register models, download certified versions."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from service.cli.connection import connect, read_json
from service.cli.console import AsJson, app, screen, show, table

models = typer.Typer(help="Register models, download certified versions.", no_args_is_help=True)
app.add_typer(models, name="models")


@models.command("add")
def models_add(
    name: str,
    path: Annotated[str, typer.Argument(help="a Hugging Face folder, or a hub id")],
    retain: Annotated[Path, typer.Option(help="texts to keep the model's abilities on")],
    heldout: Annotated[Path, typer.Option(help="texts the model has never seen")],
    policy: Annotated[Path | None, typer.Option(help="JSON; defaults for every field")] = None,
    as_json: AsJson = False,
) -> None:
    """Register a model as version 0."""
    where = str(Path(path).resolve()) if Path(path).exists() else path
    chosen = read_json(policy, "--policy") if policy else {}
    client = connect()
    show(
        client.add_model(name, where, str(retain.resolve()), str(heldout.resolve()), chosen), as_json, "name", "latest"
    )


@models.command("list")
def models_list(as_json: AsJson = False) -> None:
    """The registered models, each with its newest version."""
    client = connect()
    table(list(client.every(client.models)), as_json, "name", "latest")


@models.command("download")
def models_download(
    name: str,
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    version: str = "latest",
    as_json: AsJson = False,
) -> None:
    """Download a release folder; resumable, every digest checked."""
    client = connect()
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=screen, disable=as_json) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(path: str, done: int, total: int) -> None:
            if path not in tasks:
                tasks[path] = bars.add_task(path, total=total)
            bars.update(tasks[path], completed=done)

        found = client.download(name, version, folder, progress)
    show({"version": found["version"], "folder": str(folder)}, as_json)
