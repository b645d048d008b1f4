"""`unlearnd log`: the transparency log."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli.connection import connect
from service.cli.console import app

log = typer.Typer(help="The transparency log.", no_args_is_help=True)
app.add_typer(log, name="log")


@log.command("export")
def log_export(file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")]) -> None:
    """Write the whole log to a file, for `verify-log`."""
    lines = "".join(line + "\n" for line in connect().export_log())
    file.write_text(lines)  # after the last page has arrived, so that the file is never a part of the log
