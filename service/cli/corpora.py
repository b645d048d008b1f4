"""`unlearnd corpora`: training data to look people up in."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from service.cli.connection import COLUMNS, connect
from service.cli.console import AsJson, app, screen, show, table
from service.domain.json_types import Json

corpora = typer.Typer(help="Training data to look people up in.", no_args_is_help=True)
app.add_typer(corpora, name="corpora")


@corpora.command("add")
def corpora_add(
    model: str,
    name: str,
    path: Annotated[str, typer.Argument(help="JSONL, CSV, Parquet, plain lines or a folder of text, on the server")],
    text_column: str = "text",
    column: Annotated[list[str] | None, typer.Option(help="COLUMN=TYPE: it holds identifiers of that type")] = None,
    phone_region: Annotated[str | None, typer.Option(help="of telephone numbers without a prefix, as DE")] = None,
    wait: Annotated[bool, typer.Option(help="until it is indexed")] = True,
    as_json: AsJson = False,
) -> None:
    """Register training data of a model, and index whose it is; exit code 0 once it is ready."""
    columns = dict(pair.partition("=")[::2] for pair in column or ())
    client = connect()
    where = str(Path(path).resolve()) if Path(path).exists() else path
    found = client.add_corpus(
        model, name, where, text_column=text_column, columns=columns, phone_region=phone_region
    )  # fmt: skip
    if wait:
        with Progress(*COLUMNS, console=screen, disable=as_json) as bars:
            bar = bars.add_task(f"indexing {name}", total=1.0)

            def ask() -> Json:
                now = client.corpus(model, name)
                bars.update(bar, completed=now["progress"], description=f"{now['records']:,} records")
                return now

            found = client.poll(ask, lambda now: now["state"] != "indexing")
    show(found, as_json, "name", "state", "records", "reason")
    raise typer.Exit(0 if found["state"] == "ready" or not wait else 1)


@corpora.command("list")
def corpora_list(model: str, as_json: AsJson = False) -> None:
    """A model's corpora, and how far each is indexed."""
    client = connect()
    found = list(client.every(lambda **page: client.corpora(model, **page)))
    table(found, as_json, "name", "state", "records", "progress", "reason")


@corpora.command("remove")
def corpora_remove(model: str, name: str) -> None:
    """Forget a corpus and its index; its files stay."""
    connect().remove_corpus(model, name)
