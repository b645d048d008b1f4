"""Commands that are, or look after, a part of the stack."""

import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.console import AsJson, app, keys, screen, table

if TYPE_CHECKING:
    from service.app import Services

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="of an embedded stack that runs")]


def _become(*command: str) -> None:
    """Replace this process."""
    os.execv(sys.executable, [sys.executable, *command])  # noqa: S606


@app.command()
def up(
    data_dir: Annotated[Path, typer.Option("--data-dir", help="everything lives here")],
    host: Annotated[str, typer.Option(help="address of the API")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="UNLEARND_PORT", help="port of the API; 0 takes a free one")] = 8000,
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
    """Run a compute worker: unlearn, merge, verify. Needs the extra `engine`, holds no signing key."""
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

    settings = Settings()
    upgrade(settings.owner_database_url or settings.database_url, settings.database_url)


@app.command()
def settings(as_json: AsJson = False) -> None:
    """Every setting: its variable, its value here, and what it is. Secrets are not shown."""
    from service.config import Settings

    found = Settings().model_dump(mode="json")
    rows = [
        {"variable": f"UNLEARND_{name.upper()}", "value": _shown(name, found[name]), "is": field.description or ""}
        for name, field in Settings.model_fields.items()
    ]
    table(rows, as_json, "variable", "value", "is")


def _shown(name: str, value: object) -> str:
    """A setting's value; of a URL that may hold a secret, that it is set."""
    return "***" if value and name in ("database_url", "owner_database_url", "broker_url", "alert_url") else str(value)


@app.command()
def doctor(
    data_dir: DataDir = None,
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
    data_dir: DataDir = None,
    new_log: Annotated[bool, typer.Option(help="begin a new log: the old one cannot go on")] = False,
    as_json: AsJson = False,
) -> None:
    """After restoring an older backup of the database: take up the versions published since, purge again."""
    from service.log import LogBusy
    from service.steps.purge import purge_again
    from service.steps.restore import reconcile as step

    parts = _parts(data_dir)
    try:
        done, purged = step(parts), purge_again(parts)
    except LogBusy as error:
        screen.print(f"{error}: stop all workers first", style="red")
        raise typer.Exit(1) from None
    if done.forked and new_log:
        parts.log.begin_anew()
        done.forked = False
    parts.close()
    if as_json:
        print(json.dumps({**asdict(done), "purged": len(purged)}))
    else:
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
def demo(
    output: Annotated[Path, typer.Option(help="where the plot and the release go")] = Path("demo-output"),
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="where the sample model and its texts go")] = None,
) -> None:
    """Run the whole path on a sample model on this machine, in a few minutes."""
    _become("-m", "worker.demo", "--output", str(output), *(("--keep", str(keep)) if keep else ()))


@app.command()
def sample(folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> None:
    """Make sample data to try the service with: a small model, the texts it memorised, retain and held-out text."""
    _become("-m", "worker.demo", "--only-sample", "--keep", str(folder))


@keys.command("init")
def keys_init() -> None:
    """Make the key-encryption key and the signing keys in UNLEARND_KEYS_DIR unless they are there."""
    from service.app import create_keys
    from service.config import Settings

    create_keys(Settings())


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


@keys.command("rotate")
def keys_rotate(
    role: Annotated[str, typer.Argument(help="certificate, release, log or receipt; or certificate-NAME")],
    data_dir: DataDir = None,
) -> None:
    """Retire the key of a role and begin another; what the log has of before still counts."""
    from service.db import audit
    from service.keyring import NoSuchKey

    parts = _parts(data_dir)
    try:
        keyid = parts.keyring.rotate(role)
    except NoSuchKey as error:
        raise typer.BadParameter(str(error), param_hint="ROLE") from error
    with parts.db.transaction() as session:
        audit.append(session, "key.rotated", role=role, keyid=keyid)
    _tell_trust(parts)
    parts.close()


@keys.command("distrust")
def keys_distrust(
    keyid: Annotated[str, typer.Argument(help="of a signing key, from trust.json")], data_dir: DataDir = None
) -> None:
    """Revoke a signing key, for when it is known to others: nothing that it ever signed counts any more."""
    from service.db import audit
    from service.keyring import NoSuchKey

    parts = _parts(data_dir)
    try:
        parts.keyring.revoke(keyid)
    except NoSuchKey as error:
        raise typer.BadParameter(str(error), param_hint="KEYID") from error
    with parts.db.transaction() as session:
        audit.append(session, "key.revoked", keyid=keyid)
    _tell_trust(parts)
    parts.close()


@keys.command("trust")
def keys_trust(data_dir: DataDir = None) -> None:
    """Print trust.json, and its fingerprint for the telephone."""
    parts = _parts(data_dir)
    sys.stdout.buffer.write(parts.keyring.trust())  # to the byte: the fingerprint is of this
    sys.stdout.buffer.flush()
    _tell_trust(parts)
    parts.close()


def _tell_trust(parts: "Services") -> None:
    digest = hashlib.sha256(parts.keyring.trust()).hexdigest()
    screen.print(f"sha256 of trust.json, to be told by other means: {digest}", highlight=False, soft_wrap=True)
