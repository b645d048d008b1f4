"""Commands that are a client of the API."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from service.cli.console import AsJson, app, keys, screen, show, table
from service.domain.errors import ClientError

if TYPE_CHECKING:
    from service.client.http import Client

corpora = typer.Typer(help="Training data to look people up in.", no_args_is_help=True)
jobs = typer.Typer(help="Look after jobs.", no_args_is_help=True)
log = typer.Typer(help="The transparency log.", no_args_is_help=True)
models = typer.Typer(help="Register models, download certified versions.", no_args_is_help=True)
app.add_typer(corpora, name="corpora")
app.add_typer(jobs, name="jobs")
app.add_typer(log, name="log")
app.add_typer(models, name="models")


COLUMNS = (
    TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
)  # fmt: skip


def read_json(file: Path, option: str) -> Any:
    """What a file of JSON holds.

    Raises:
        ClientError: It cannot be read; names the option.
    """
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ClientError(f"{option}: {file} is not there, or not JSON") from error


def connect() -> "Client":
    """A client of the service that the environment names; what it needs is imported here, not for offline commands."""
    from service.client.http import Client

    return Client.from_environment()


@log.command("export")
def log_export(file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Write the whole log down, for `verify-log`."""
    lines = "".join(line + "\n" for line in connect().export_log())
    file.write_text(lines)  # only once all of it is here


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
        tasks: dict[str, Any] = {}

        def progress(path: str, done: int, total: int) -> None:
            if path not in tasks:
                tasks[path] = bars.add_task(path, total=total)
            bars.update(tasks[path], completed=done)

        found = client.download(name, version, folder, progress)
    show({"version": found["version"], "folder": str(folder)}, as_json)


@corpora.command("add")
def corpora_add(
    model: str,
    name: str,
    path: Annotated[str, typer.Argument(help="JSONL, CSV, Parquet, plain lines or a folder of text, on the server")],
    text_column: str = "text",
    column: Annotated[list[str] | None, typer.Option(help="COLUMN=TYPE: it holds identifiers of that type")] = None,
    phone_region: Annotated[str | None, typer.Option(help="of telephone numbers without a prefix, as DE")] = None,
    wait: Annotated[bool, typer.Option(help="until it is indexed")] = True,
    as_json: AsJson = False,
) -> None:
    """Register training data of a model, and index whose it is; exit code 0 once it is ready."""
    columns = dict(pair.partition("=")[::2] for pair in column or ())
    client = connect()
    where = str(Path(path).resolve()) if Path(path).exists() else path
    found = client.add_corpus(
        model, name, where, text_column=text_column, columns=columns, phone_region=phone_region
    )  # fmt: skip
    if wait:
        with Progress(*COLUMNS, console=screen, disable=as_json) as bars:
            bar = bars.add_task(f"indexing {name}", total=1.0)

            def ask() -> Any:
                now = client.corpus(model, name)
                bars.update(bar, completed=now["progress"], description=f"{now['records']:,} records")
                return now

            found = client.poll(ask, lambda now: now["state"] != "indexing")
    show(found, as_json, "name", "state", "records", "reason")
    raise typer.Exit(0 if found["state"] == "ready" or not wait else 1)


@corpora.command("list")
def corpora_list(model: str, as_json: AsJson = False) -> None:
    """A model's corpora, and how far each is indexed."""
    client = connect()
    found = list(client.every(lambda **page: client.corpora(model, **page)))
    table(found, as_json, "name", "state", "records", "progress", "reason")


@corpora.command("remove")
def corpora_remove(model: str, name: str) -> None:
    """Forget a corpus and its index; its files stay."""
    connect().remove_corpus(model, name)


@jobs.command("retry")
def jobs_retry(job_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Put the failed requests of a job that was given up back in line, once its reason is removed."""
    table(connect().retry_job(job_id), as_json, "id", "status")


@keys.command("create")
def keys_create(name: str, scope: Annotated[list[str], typer.Option()], as_json: AsJson = False) -> None:
    """Make an API key; it is shown this once."""
    show(connect().call("POST", "/v1/api-keys", json={"name": name, "scopes": scope}), as_json)


@keys.command("revoke")
def keys_revoke(key_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Revoke an API key for good."""
    connect().call("DELETE", f"/v1/api-keys/{key_id}")
