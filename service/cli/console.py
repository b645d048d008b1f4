"""What all commands share: the application, the screen, and how answers are printed."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(help="Deletion requests in, certified model versions out.", no_args_is_help=True)
keys = typer.Typer(help="API keys, and the keys that sign.", no_args_is_help=True)
app.add_typer(keys, name="keys")
screen = Console(stderr=True)
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def show(value: Any, as_json: bool, *names: str) -> None:
    """Print an answer: JSON, or one line a field."""
    if as_json:
        print(json.dumps(value))
        return
    for name in names or value:
        if value.get(name) is not None:
            print(f"{name:12} {value[name]}")
