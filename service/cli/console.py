"""What all commands share: the application, the console, and how answers are printed."""

import importlib.metadata
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.console import Console


def _print_version(asked: bool) -> None:
    """Print the version of this program, and exit."""
    if asked:
        print(importlib.metadata.version("unlearnd"))
        raise typer.Exit


def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Deletion requests in, certified model versions out."""


app = typer.Typer(
    callback=_options,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # a local variable may hold a text or a secret
)
keys = typer.Typer(help="API keys and signing keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")
stderr_console = Console(stderr=True)
PIPE_WIDTH = 1000  # columns of a table that goes into a pipe or a file: each row stays on one line
Most = Annotated[int | None, typer.Option("--limit", min=1, help="Show at most this many. The default is all.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_message(text: str, style: str = "") -> None:
    """Print a line for a person on standard error. Markup in the text is printed as it is."""
    stderr_console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def show(answer: Mapping[str, object], as_json: bool, *names: str) -> None:
    """Print an answer as JSON, or one line for each field (each of `names`, where given)."""
    if as_json:
        print(json.dumps(answer))
        return
    for name in names or answer:
        if answer.get(name) not in (None, ""):
            print(f"{name:12} {answer[name]}")


def table(rows: Sequence[Mapping[str, object]], as_json: bool, *names: str) -> None:
    """Print rows as JSON, or as a table with the columns `names`."""
    if as_json:
        print(json.dumps(rows))
        return
    from rich.markup import escape
    from rich.table import Table

    grid = Table(*names, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        grid.add_row(*(escape("" if row[name] is None else str(row[name])) for name in names))
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(grid)


def exit_on_sigterm() -> None:
    """Let SIGTERM raise `SystemExit` here, so that what is half made is removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
