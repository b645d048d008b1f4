"""Commands that are a part of the stack: each replaces this process."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import AsJson, app, table


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
