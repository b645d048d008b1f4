"""Commands for the operator of a server or of an embedded stack: doctor, reconcile."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from service.cli.console import AsJson, app, screen
from service.cli.local_services import DataDir, local_services


@app.command()
def doctor(
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong, and say what to do; exit code 0 if nothing is."""
    from service.doctor import examine

    services = local_services(data_dir, create=False)
    found = examine(services)
    services.close()
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
    from service.evidence.log_keeper import LogBusy
    from service.steps.operator.restore import reconcile as step
    from service.steps.upkeep.purge import purge_restored

    services = local_services(data_dir)
    try:
        done, purged = step(services), purge_restored(services)
    except LogBusy as error:
        screen.print(f"{error}: stop all workers first", style="red")
        raise typer.Exit(1) from None
    if done.forked and new_log:
        services.log.start_new_log()
        done.forked = False
    services.close()
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
