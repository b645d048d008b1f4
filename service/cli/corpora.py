"""`unlearnd corpora`: training data in which people are looked up."""

from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import connect, progress_bars, server_path
from service.cli.console import AsJson, Most, app, show, table

if TYPE_CHECKING:
    from service.client.answers import CorpusAnswer

corpora = typer.Typer(help="Training data in which people are looked up.", no_args_is_help=True)
app.add_typer(corpora, name="corpora")

ModelName = Annotated[str, typer.Argument(help="The model that was trained on the corpus.")]
CorpusName = Annotated[str, typer.Argument(help="The name of the corpus.")]
CorpusPath = Annotated[
    str,
    typer.Argument(
        help="A JSONL, CSV or Parquet file, plain lines, or a folder of texts, in one of UNLEARND_CORPUS_ROOTS."
    ),
]
TextColumnName = Annotated[str, typer.Option(help="The column that holds the text.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(help="COLUMN=TYPE: the column holds identifiers of this type. Repeat it for more columns."),
]
PhoneRegion = Annotated[str | None, typer.Option(help="The country of phone numbers without a prefix, such as DE.")]
Wait = Annotated[bool, typer.Option(help="Wait until the corpus is indexed.")]


@corpora.command("add")
def corpora_add(
    model: ModelName,
    name: CorpusName,
    path: CorpusPath,
    text_column: TextColumnName = "text",
    column: Columns = None,
    phone_region: PhoneRegion = None,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Register training data of a model and index the people in it. The exit code is 0 once it is ready."""
    columns = dict(pair.partition("=")[::2] for pair in column or ())
    client = connect()
    fields = {"text_column": text_column, "columns": columns, "phone_region": phone_region}
    corpus: CorpusAnswer = client.add_corpus(model, name, server_path(path), **fields)
    if wait:
        with progress_bars(hidden=as_json) as bars:
            bar = bars.add_task(f"indexing {name}", total=1.0)

            def ask() -> "CorpusAnswer":
                state: CorpusAnswer = client.corpus(model, name)
                bars.update(bar, completed=state["progress"], description=f"{state['records']:,} records")
                return state

            corpus = client.poll(ask, lambda state: state["state"] != "indexing")
    show(corpus, as_json, "name", "state", "records", "reason")
    raise typer.Exit(0 if corpus["state"] == "ready" or not wait else 1)


@corpora.command("list")
def corpora_list(model: ModelName, limit: Most = None, as_json: AsJson = False) -> None:
    """List a model's corpora and how much of each is indexed."""
    client = connect()
    rows = list(client.list_all(lambda **page: client.corpora(model, **page), most=limit))
    table(rows, as_json, "name", "state", "records", "progress", "reason")


@corpora.command("remove")
def corpora_remove(model: ModelName, name: CorpusName) -> None:
    """Remove a corpus and its index. Its files stay."""
    connect().remove_corpus(model, name)
