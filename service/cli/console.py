"""What all commands share: the application, the screen, and how answers are printed."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(help="Deletion requests in, certified model versions out.", no_args_is_help=True)
keys = typer.Typer(help="API keys, and the keys that sign.", no_args_is_help=True)
app.add_typer(keys, name="keys")
screen = Console(stderr=True)
WIDE = 1000  # columns where nobody looks: a row stays a line
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def say(text: str, style: str = "") -> None:
    """A line for a person on standard error, as it is: what looks like markup is none."""
    screen.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def show(value: Any, as_json: bool, *names: str) -> None:
    """Print an answer: JSON, or one line a field."""
    if as_json:
        print(json.dumps(value))
        return
    for name in names or value:
        if value.get(name) not in (None, ""):
            print(f"{name:12} {value[name]}")


def table(rows: list[dict[str, Any]], as_json: bool, *names: str) -> None:
    """Print several answers: JSON, or a line each under the names."""
    if as_json:
        print(json.dumps(rows))
        return
    drawn = Table(*names, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        drawn.add_row(*(escape("" if row[name] is None else str(row[name])) for name in names))
    Console(width=None if sys.stdout.isatty() else WIDE).print(drawn)
