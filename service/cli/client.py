"""Commands that are a client of the API."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from service.cli.console import AsJson, app, keys, screen, show
from service.domain.errors import ClientError

if TYPE_CHECKING:
    from service.client import Client

requests = typer.Typer(help="Submit deletion requests and follow them.", no_args_is_help=True)
jobs = typer.Typer(help="Look after jobs.", no_args_is_help=True)
log = typer.Typer(help="The transparency log.", no_args_is_help=True)
models = typer.Typer(help="Register models, download certified versions.", no_args_is_help=True)
app.add_typer(requests, name="requests")
app.add_typer(jobs, name="jobs")
app.add_typer(log, name="log")
app.add_typer(models, name="models")


def connect() -> "Client":
    """A client of the service that the environment names; what it needs is imported here, not for offline commands."""
    from service.client import Client

    return Client.from_environment()


@log.command("export")
def log_export(file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Write the whole log down, for `verify-log`."""
    lines = connect().export_log()
    with file.open("w") as out:
        for line in lines:
            out.write(line + "\n")


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
    chosen = json.loads(policy.read_text()) if policy else {}
    client = connect()
    show(
        client.add_model(name, where, str(retain.resolve()), str(heldout.resolve()), chosen), as_json, "name", "latest"
    )


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


@requests.command("submit")
def requests_submit(
    model: Annotated[str, typer.Option()],
    text: Annotated[list[str] | None, typer.Option(help="a record; may be given several times")] = None,
    file: Annotated[Path | None, typer.Option(help="JSONL or CSV with a `text` column, or a record a line")] = None,
    regulation: str = "gdpr",
    callback_url: str | None = None,
    resubmits: Annotated[Path | None, typer.Option(help="receipt of an earlier request with the same texts")] = None,
    receipt: Annotated[Path | None, typer.Option(help="where the receipt goes; default: receipt-ID.json")] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a deletion request; its receipt, which is given once, is written to a file."""
    from service.steps.register import UnreadableCorpus, read_texts

    texts = list(text or [])
    if file:
        try:
            texts += read_texts(file)
        except (UnreadableCorpus, UnicodeDecodeError) as error:
            raise ClientError(f"--file: {error}") from error
    if not texts:
        raise ClientError("give --text or --file")
    fields: dict[str, Any] = {"callback_url": callback_url} if callback_url else {}
    if resubmits:
        earlier = json.loads(resubmits.read_text())["receipt"]
        fields["resubmits"] = {"ref": earlier["ref"], "nonces": [record["nonce"] for record in earlier["records"]]}
    found = connect().submit(model, texts, regulation=regulation, **fields)
    target = receipt or Path(f"receipt-{found['id']}.json")
    target.touch(mode=0o600)
    target.write_text(json.dumps(found, indent=1))
    screen.print(f"The receipt is in {target}. Keep it with the texts: it is given once.", highlight=False)
    show(found, as_json, "id", "status", "due_at")


@requests.command("show")
def requests_show(request_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Show a request."""
    show(connect().request(request_id), as_json)


@requests.command("retry")
def requests_retry(request_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Put a failed request back in line, once its reason is removed."""
    show(connect().retry_request(request_id), as_json, "id", "status", "due_at")


@jobs.command("retry")
def jobs_retry(job_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Put the failed requests of a job that was given up back in line, once its reason is removed."""
    for request in connect().retry_job(job_id):
        print(f"{request['id']} {request['status']}")


@requests.command("watch")
def requests_watch(request_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Follow a request to its end, live; exit code 0 if it completed or needed no training."""
    found = watch(connect(), request_id, quiet=as_json)
    show(found, as_json, "id", "status", "verdict", "version", "reason")
    raise typer.Exit(0 if found["status"] in ("completed", "not_memorised") else 1)


def watch(client: "Client", request_id: str, *, quiet: bool = False) -> Any:
    """Show a request's progress until it ends; returns it."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=screen, disable=quiet) as bars:
        bar = bars.add_task("waiting for a batch", total=1.0)
        found = client.until_batched(request_id)
        if found["job_id"]:
            for kind, data in client.events(found["job_id"]):
                describe = {"stage": data.get("stage"), "progress": data.get("stage"), "epoch": _epoch(data)}
                bars.update(bar, description=describe.get(kind) or kind, completed=data.get("progress"))
        return client.wait(request_id)


def _epoch(data: dict[str, Any]) -> str | None:
    return (
        f"epoch {data['epoch']}: MA {data['ma']:.3f}, limit {data['ma_limit']:.3f}"
        if data.get("ma") is not None
        else None
    )


@keys.command("create")
def keys_create(name: str, scope: Annotated[list[str], typer.Option()], as_json: AsJson = False) -> None:
    """Make an API key; it is shown this once."""
    show(connect().call("POST", "/v1/api-keys", json={"name": name, "scopes": scope}), as_json)


@keys.command("revoke")
def keys_revoke(key_id: str) -> None:
    """Revoke an API key for good."""
    connect().call("DELETE", f"/v1/api-keys/{key_id}")
