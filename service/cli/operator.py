"""Commands for the operator of a server or of an embedded stack: doctor, reconcile, storage."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import progress_bars
from service.cli.console import AsJson, app, print_message, stderr_console
from service.cli.local_services import DataDir, local_services

if TYPE_CHECKING:
    from rich.progress import TaskID

    from service.steps.operator.restore import Reconciled

storage = typer.Typer(help="Storage: releases, reference texts, and the ledger.", no_args_is_help=True)
app.add_typer(storage, name="storage")
NewLog = Annotated[bool, typer.Option(help="Begin a new log, because the old one cannot be continued.")]
Seen = Annotated[bool, typer.Option(help="You have dealt with what a promoted or restored database lost.")]


@app.command()
def doctor(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Look for problems and print a remedy for each. The exit code is 0 if there is none."""
    from service.doctor import examine

    services = local_services(data_dir, create=False)
    findings = examine(services)
    services.close()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    for finding in () if as_json else findings:
        stderr_console.print(f"{finding.check}: {finding.problem}", style="red", markup=False, highlight=False)
        stderr_console.print(f"    {finding.remedy}", markup=False, highlight=False)
    if not findings and not as_json:
        print("nothing wrong was found")
    raise typer.Exit(1 if findings else 0)


@app.command("reconcile")
def reconcile_command(
    data_dir: DataDir = None, new_log: NewLog = False, seen: Seen = False, as_json: AsJson = False
) -> None:
    """Take up later versions and purge again, after an older backup was restored or a late standby was promoted."""
    from service.db.log_home import note_seen
    from service.evidence.log_memory import LogBusy
    from service.steps.operator.restore import reconcile
    from service.steps.upkeep.purge import purge_restored
    from service.steps.upkeep.shred import rewrap_restored

    services = local_services(data_dir)
    try:
        reconciled = reconcile(services)
        rewrap_restored(services)
        purged = purge_restored(services)
        if seen:
            with services.db.transaction() as session:
                note_seen(session)
    except LogBusy as error:
        stderr_console.print(f"{error}: stop all workers first", style="red")
        raise typer.Exit(1) from None
    if reconciled.forked and new_log:
        services.log.start_new_log()
        reconciled.forked = False
    services.close()
    if as_json:
        print(json.dumps({**asdict(reconciled), "purged": len(purged)}))
    else:
        _print_reconciled(reconciled, len(purged))
    if reconciled.forked:
        message = "the log continued before reconcile ran and contradicts what was signed: see --new-log"
        stderr_console.print(message, style="red")
    raise typer.Exit(1 if reconciled.unknown or reconciled.forked else 0)


@storage.command("copy")
def copy(
    target: Annotated[str, typer.Argument(help="A folder, or a bucket such as s3://bucket/prefix.")],
    data_dir: DataDir = None,
) -> None:
    """Bring another storage up to this one, to move there or as a backup. What it has already stays.

    Releases pass through the temporary folder (TMPDIR), one at a time.
    """
    from service.bootstrap import open_log_memory, open_storage
    from service.config import Settings
    from service.domain.errors import Conflict
    from service.evidence.log_memory import LogBusy
    from service.steps.operator.copy_storage import copy_storage

    services = local_services(data_dir, create=False)
    bars: dict[str, TaskID] = {}
    with tempfile.TemporaryDirectory() as place, progress_bars(hidden=False) as shown:
        folder, url = (place, target) if "://" in target else (target, "")
        settings = Settings(storage_dir=Path(folder), storage_url=url)

        def say(what: str, number: int, count: int) -> None:
            if what not in bars:
                bars[what] = shown.add_task(what, total=count)
            shown.update(bars[what], completed=number + 1)

        try:
            logs = open_log_memory(services.settings), open_log_memory(settings)
            copy_storage(services.storage, logs[0], open_storage(settings), logs[1], say)
        except (Conflict, LogBusy) as error:
            print_message(str(error), "red")
            raise typer.Exit(1) from None
    services.close()


def _print_reconciled(reconciled: "Reconciled", purged: int) -> None:
    for version in reconciled.adopted:
        print(f"taken up again: {version}")
    for version in reconciled.unknown:
        stderr_console.print(f"in storage, but cannot be taken up: {version}", style="red")
    print(f"entries of the log brought back: {reconciled.entries}")
    for ref in reconciled.lost:
        stderr_console.print(f"accepted, but lost: {ref}; ask its submitter to send it again", style="red")
    print(f"purged again: {purged} requests")
