"""The command line: `unlearnd`. Parts of the stack, and a client of the API."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from service.client import Client, ClientError

if TYPE_CHECKING:
    from service.app import Services
    from service.audit.verify import VerificationError

app = typer.Typer(help="Deletion requests in, certified model versions out.", no_args_is_help=True)
requests = typer.Typer(help="Submit deletion requests and follow them.", no_args_is_help=True)
jobs = typer.Typer(help="Look after jobs.", no_args_is_help=True)
log = typer.Typer(help="The transparency log.", no_args_is_help=True)
models = typer.Typer(help="Register models, download certified versions.", no_args_is_help=True)
keys = typer.Typer(help="Make and revoke API keys.", no_args_is_help=True)
app.add_typer(requests, name="requests")
app.add_typer(jobs, name="jobs")
app.add_typer(log, name="log")
app.add_typer(models, name="models")
app.add_typer(keys, name="keys")
screen = Console(stderr=True)
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def _show(value: Any, as_json: bool, *names: str) -> None:
    """Print an answer: JSON, or one line a field."""
    if as_json:
        print(json.dumps(value))
        return
    for name in names or value:
        if value.get(name) is not None:
            print(f"{name:12} {value[name]}")


def _become(*command: str) -> None:
    """Replace this process."""
    os.execv(sys.executable, [sys.executable, *command])  # noqa: S606


@app.command()
def up(
    data_dir: Annotated[Path, typer.Option("--data-dir", help="everything lives here")],
    host: Annotated[str, typer.Option(help="address of the API")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port of the API; 0 takes a free one")] = 8000,
) -> None:
    """Run the whole stack in one data folder: PostgreSQL, Valkey, API, control and compute workers."""
    try:
        from service.local.supervisor import run
    except ImportError as error:
        raise typer.BadParameter(f"`up` needs the extra unlearnd[local] ({error.name} is missing)") from error
    raise typer.Exit(run(data_dir, host, port))


@app.command()
def api(host: str = "127.0.0.1", port: int = 8000) -> None:
    """Run the HTTP API."""
    _become("-m", "service.main", "--host", host, "--port", str(port))


@app.command()
def worker(concurrency: Annotated[int, typer.Option(help="jobs at once; one a GPU")] = 1) -> None:
    """Run a compute worker: unlearn, merge, verify. Needs the extra unlearnd[engine], holds no signing key."""
    _celery("gpu", "compute", concurrency)


@app.command()
def control(concurrency: int = 4, schedule: str = "celerybeat-schedule") -> None:
    """Run a control worker with the sweep: batch, certify, publish, callbacks. Needs no torch."""
    _celery("control", "control", concurrency, "-B", "--schedule", schedule)


def _celery(queue: str, name: str, concurrency: int, *more: str) -> None:
    _become(
        "-m", "celery", "-A", "worker.app", "worker", "--pool", "threads", "--loglevel", "INFO", "-Q", queue,
        "-n", f"{name}@%h", "--concurrency", str(concurrency), "--without-mingle", "--without-gossip", *more,
    )  # fmt: skip


@app.command()
def migrate() -> None:
    """Bring the database's schema up to date."""
    from service.config import Settings
    from service.migrate import upgrade

    upgrade(Settings().database_url)


@app.command()
def doctor(
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="of an embedded stack that runs")] = None,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong, and say what to do; exit code 0 if nothing is."""
    from service.doctor import examine

    parts = _parts(data_dir, create=False)
    found = examine(parts)
    parts.close()
    if as_json:
        print(json.dumps([asdict(finding) for finding in found]))
    for finding in () if as_json else found:
        screen.print(f"{finding.check}: {finding.problem}", style="red", markup=False, highlight=False)
        screen.print(f"    {finding.remedy}", markup=False, highlight=False)
    if not found and not as_json:
        print("nothing wrong was found")
    raise typer.Exit(1 if found else 0)


@app.command()
def reconcile(
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="of an embedded stack that runs")] = None,
    new_log: Annotated[bool, typer.Option(help="begin a new log: the old one cannot go on")] = False,
) -> None:
    """After restoring an older backup of the database: take up the versions published since, purge again."""
    from service.steps.purge import purge_again
    from service.steps.restore import reconcile as step

    parts = _parts(data_dir)
    done, purged = step(parts), purge_again(parts)
    if done.forked and new_log:
        parts.log.begin_anew()
        done.forked = False
    parts.close()
    for version in done.adopted:
        print(f"taken up again: {version}")
    for version in done.unknown:
        screen.print(f"in storage, but cannot be taken up: {version}", style="red")
    print(f"entries of the log brought back: {done.entries}")
    print(f"purged again: {len(purged)} requests")
    if done.forked:
        screen.print("the log went on before this and contradicts what was signed: see --new-log", style="red")
    raise typer.Exit(1 if done.unknown or done.forked else 0)


def _parts(data_dir: Path | None, *, create: bool = True) -> "Services":
    """The wired parts, of the environment or of an embedded stack's folder."""
    from service.app import build
    from service.config import Settings

    if data_dir is None:
        return build(create=create)
    from service.local.supervisor import Stack

    if not (data_dir / "run").is_dir():
        raise typer.BadParameter(f"{data_dir} is not the folder of an embedded stack", param_hint="--data-dir")
    environment = Stack(data_dir).environment
    names = {name.removeprefix("UNLEARND_").lower(): value for name, value in environment.items()}
    return build(Settings(**{k: v for k, v in names.items() if k in Settings.model_fields}), create=create)  # type: ignore[arg-type]


@app.command()
def demo(output: Annotated[Path, typer.Option(help="where the plot and the release go")] = Path("demo-output")) -> None:
    """See the whole promise happen on this machine, in a few minutes."""
    _become("-m", "worker.demo", "--output", str(output))


def _refuse(error: "VerificationError", as_json: bool) -> NoReturn:
    """Say why, and end with the code."""
    if as_json:
        print(json.dumps({"valid": False, "code": int(error.code), "name": error.code.name, "reason": error.reason}))
    else:
        screen.print(f"NOT VALID ({int(error.code)} {error.code.name}): {error.reason}", style="red", markup=False)
    raise typer.Exit(int(error.code)) from error


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a release folder")],
    trust: Annotated[Path | None, typer.Option(help="trust.json, obtained from the issuer by other means")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a release folder offline; exit code 0 only if all holds."""
    from service.audit.verify import VerificationError
    from service.audit.verify import verify as check

    try:
        found = check(folder, trust)
    except VerificationError as error:
        _refuse(error, as_json)
    lineage = found.statement["predicate"]["lineage"]
    count = len(found.statement["subject"])
    if as_json:
        print(json.dumps({"valid": True, "code": 0, "keyids": found.keyids, "own_trust": found.own_trust, **lineage}))
        return
    print(f"verified: {lineage['model']} version {lineage['version']}, {count} files, signed by {found.keyids[0][:16]}")
    if found.own_trust:
        screen.print("The key came with the release: this shows integrity. Use --trust for origin.", style="yellow")


@app.command("verify-log")
def verify_log(
    export: Annotated[Path, typer.Argument(metavar="FILE", help="an exported log")],
    trust: Annotated[Path, typer.Option(help="trust.json, obtained from the issuer by other means")],
    older: Annotated[Path | None, typer.Option(help="a checkpoint that you kept, or an older export")] = None,
    as_json: AsJson = False,
) -> None:
    """Check an exported log offline; exit code 0 only if all holds."""
    from service.audit.verify import VerificationError
    from service.audit.verify_log import verify_log as check

    try:
        found = check(export, trust, older)
    except VerificationError as error:
        _refuse(error, as_json)
    checkpoint = found.checkpoint
    if as_json:
        print(json.dumps({"valid": True, "code": 0, "origin": checkpoint.origin, "size": checkpoint.size}))
    else:
        print(f"verified: {checkpoint.origin}, {checkpoint.size} entries, {found.requests} requests")


@log.command("export")
def log_export(file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Write the whole log down, for `verify-log`."""
    lines = Client.from_environment().export_log()
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
    client = Client.from_environment()
    _show(
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
    client = Client.from_environment()
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=screen, disable=as_json) as bars:
        tasks: dict[str, Any] = {}

        def progress(path: str, done: int, total: int) -> None:
            if path not in tasks:
                tasks[path] = bars.add_task(path, total=total)
            bars.update(tasks[path], completed=done)

        found = client.download(name, version, folder, progress)
    _show({"version": found["version"], "folder": str(folder)}, as_json)


@requests.command("submit")
def requests_submit(
    model: Annotated[str, typer.Option()],
    text: Annotated[list[str] | None, typer.Option(help="a record; may be given several times")] = None,
    file: Annotated[Path | None, typer.Option(help="JSONL or CSV with a `text` column, or a record a line")] = None,
    regulation: str = "gdpr",
    callback_url: str | None = None,
    as_json: AsJson = False,
) -> None:
    """Submit a deletion request."""
    from service.steps.register import UnreadableCorpus, read_texts

    texts = list(text or [])
    if file:
        try:
            texts += read_texts(file)
        except (UnreadableCorpus, UnicodeDecodeError) as error:
            raise ClientError(f"--file: {error}") from error
    if not texts:
        raise ClientError("give --text or --file")
    fields = {"callback_url": callback_url} if callback_url else {}
    found = Client.from_environment().submit(model, texts, regulation=regulation, **fields)
    _show(found, as_json, "id", "status", "due_at")


@requests.command("show")
def requests_show(request_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Show a request."""
    _show(Client.from_environment().request(request_id), as_json)


@requests.command("retry")
def requests_retry(request_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Put a failed request back in line, once its reason is removed."""
    _show(Client.from_environment().retry_request(request_id), as_json, "id", "status", "due_at")


@jobs.command("retry")
def jobs_retry(job_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Put the failed requests of a job that was given up back in line, once its reason is removed."""
    for request in Client.from_environment().retry_job(job_id):
        print(f"{request['id']} {request['status']}")


@requests.command("watch")
def requests_watch(request_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Follow a request to its end, live; exit code 0 if it completed or needed no training."""
    found = watch(Client.from_environment(), request_id, quiet=as_json)
    _show(found, as_json, "id", "status", "verdict", "version", "reason")
    raise typer.Exit(0 if found["status"] in ("completed", "not_memorised") else 1)


def watch(client: Client, request_id: str, *, quiet: bool = False) -> Any:
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
    return f"epoch {data['epoch']}: MA {data['ma']:.3f}, limit {data['ma_limit']:.3f}" if "ma" in data else None


@keys.command("create")
def keys_create(name: str, scope: Annotated[list[str], typer.Option()], as_json: AsJson = False) -> None:
    """Make an API key; it is shown this once."""
    _show(Client.from_environment().call("POST", "/v1/api-keys", json={"name": name, "scopes": scope}), as_json)


@keys.command("revoke")
def keys_revoke(key_id: str) -> None:
    """Revoke an API key for good."""
    Client.from_environment().call("DELETE", f"/v1/api-keys/{key_id}")


@keys.command("init")
def keys_init() -> None:
    """Make the key-encryption key and the certificate key in UNLEARND_KEYS_DIR unless they are there."""
    from service.app import create_keys
    from service.config import Settings

    create_keys(Settings().keys_dir)


@keys.command("bootstrap")
def keys_bootstrap(name: str = "first admin") -> None:
    """Make an admin key straight in the database, on a server where there is none yet; it is shown this once."""
    from service.config import Settings
    from service.db.keys import SCOPES, create
    from service.db.session import Database

    database = Database(Settings().database_url, pool_size=1)
    with database.transaction() as session:
        _, secret = create(session, name, list(SCOPES))
    database.close()
    print(secret)


def main() -> None:
    """Run the command line; errors of the service are one line on standard error."""
    try:
        app()
    except ClientError as error:
        screen.print(f"unlearnd: {error}", style="red", highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
