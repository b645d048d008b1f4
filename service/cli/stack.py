"""Commands that run parts of the stack. All but `up`, `migrate` and `settings` replace this process."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from service import extras
from service.cli.console import AsJson, app, table
from service.domain.errors import CannotStart

LOGINS = ("api", "control", "compute")  # processes that may have a database login of their own


def _replace_process(*arguments: str) -> None:
    """Replace this process by Python with these arguments."""
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606


@app.command()
def up(
    data_dir: Annotated[Path, typer.Option("--data-dir", help="The folder that holds everything.")],
    host: Annotated[str, typer.Option(help="The address of the API.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="UNLEARND_PORT", min=0, max=65535, help="The port of the API; 0 picks a free one.")
    ] = 8000,
    api_processes: Annotated[int, typer.Option(min=1, max=8, help="How many processes of the API.")] = 1,
) -> None:
    """Run the whole stack in one data folder: PostgreSQL, Valkey, API, control and compute workers."""
    extras.require("up", "engine", "local")
    from service.local.supervisor import run

    run(data_dir, host, port, api_processes)


@app.command()
def api(
    host: Annotated[str, typer.Option(help="The address of the API.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port of the API; 0 picks a free one.")] = 8000,
    processes: Annotated[int, typer.Option(min=1, max=64, help="How many processes serve on the port.")] = 1,
) -> None:
    """Run the HTTP API."""
    _replace_process("-m", "service.main", "--host", host, "--port", str(port), "--processes", str(processes))


@app.command()
def worker(
    concurrency: Annotated[int, typer.Option(help="How many jobs run at once. GPUs are dealt out to them.")] = 1,
    drain: Annotated[bool, typer.Option("--drain", help="End when no job is left. It needs no broker.")] = False,
) -> None:
    """Run a compute worker: unlearn, merge, verify. It needs the extra `engine` and holds no signing key."""
    extras.require("worker", "engine")
    if drain:
        _replace_process("-m", "worker.drain")
    _run_celery("gpu", "compute", concurrency)


@app.command()
def control(
    concurrency: Annotated[int, typer.Option(help="How many tasks run at once.")] = 4,
    schedule: Annotated[str, typer.Option(help="The file in which Celery beat keeps its state.")] = (
        "celerybeat-schedule"
    ),
) -> None:
    """Run a control worker and the sweep: batch, certify, publish, callbacks. It needs no torch."""
    if not os.access(Path(schedule).resolve().parent, os.W_OK):  # beat alone would end, and nothing would be swept
        raise CannotStart(f"--schedule: {Path(schedule).resolve().parent} is not a folder that can be written to")
    _run_celery("control", "control", concurrency, "-B", "--schedule", schedule)


def _run_celery(queue: str, name: str, concurrency: int, *options: str) -> None:
    """Replace this process by a Celery worker of one queue."""
    celery = ("-m", "celery", "-A", "worker.app", "worker", "--pool", "threads", "--loglevel", "INFO")
    node = ("-Q", queue, "-n", f"{name}@%h", "--concurrency", str(concurrency))
    _replace_process(*celery, *node, "--without-mingle", "--without-gossip", *options)


@app.command()
def migrate() -> None:
    """Bring the database schema up to date."""
    from service.config import Settings
    from service.migrate import upgrade

    settings = Settings()
    if not settings.owner_database_url:
        settings.require("database_url")
    logins = {name: getattr(settings, f"{name}_database_url") for name in LOGINS}
    upgrade(settings.owner_database_url or settings.database_url, settings.database_url, **logins)


@app.command()
def settings(as_json: AsJson = False) -> None:
    """List every setting: its variable, its value here, and its meaning. Secrets are hidden."""
    from service.config import Settings

    table(Settings().rows(), as_json, "variable", "value", "meaning")


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="The folder for the plot and the release.")] = Path("demo-output"),
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder for the sample model and texts.")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Stay up afterwards, to look at the console.")] = False,
) -> None:
    """Run the whole path on a sample model on this machine, in a few minutes."""
    extras.require("demo", "demo")
    options = [*(("--keep", str(keep)) if keep else ()), *(["--serve"] if serve else [])]
    _replace_process("-m", "worker.demo", "--output", str(output), *options)


@app.command()
def sample(folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> None:
    """Make sample data to try the service with: a small model, the texts it memorised, retain and held-out text."""
    extras.require("sample", "demo")
    _replace_process("-m", "worker.demo", "--only-sample", "--keep", str(folder))


@app.command()
def plan(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", exists=True, file_okay=False)],
    devices: Annotated[
        int | None, typer.Option(min=1, max=1024, help="How many share the weights; default: all.")
    ] = None,
    device_memory: Annotated[
        int | None, typer.Option(min=1, metavar="BYTES", help="Of each; default: this one's.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A model's policy, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what memory a job on a model needs in each stage, and which settings fit. Exit code 1: none does."""
    extras.require("plan", "engine")
    values = {"--devices": devices, "--device-memory": device_memory, "--policy": policy}
    given = [part for name, value in values.items() if value is not None for part in (name, str(value))]
    _replace_process("-m", "worker.plan", str(model), *given, *(["--json"] if as_json else []))
