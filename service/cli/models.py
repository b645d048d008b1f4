"""`unlearnd models`: register models, change their policies, download certified versions."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import connect, download_bars, read_json, server_path
from service.cli.console import AsJson, Most, app, exit_on_sigterm, show, table
from service.domain.errors import ClientError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from service.client.answers import VersionAnswer

models = typer.Typer(help="Register models, change their policies, download certified versions.", no_args_is_help=True)
app.add_typer(models, name="models")


@models.command("add")
def models_add(
    name: Annotated[str, typer.Argument(help="The name of the model in the service.")],
    path: Annotated[
        str, typer.Argument(help="A Hugging Face folder on the server, in one of UNLEARND_MODEL_ROOTS, or a hub id.")
    ],
    retain: Annotated[Path, typer.Option(help="Texts on which training keeps the model's abilities.")],
    heldout: Annotated[Path, typer.Option(help="Texts that the model has never seen.")],
    policy: Annotated[Path | None, typer.Option(help="A JSON file. Every field has a default.")] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The model that this one was fine-tuned from: a server folder or a hub id."),
    ] = None,
    neighbours: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE: texts that no version may lose. Repeat it for more files."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Register a model as version 0."""
    policy_fields = read_json(policy, "--policy") if policy else {}
    texts = str(retain.resolve()), str(heldout.resolve())
    others = _named_files(neighbours or ())
    base = server_path(base) if base else None
    model = connect().add_model(name, server_path(path), *texts, policy_fields, base, others)
    show(model, as_json, "name", "latest")
    for warning in model.get("warnings") or ():
        print(f"warning: {warning}", file=sys.stderr)


def _named_files(given: Sequence[str]) -> dict[str, str]:
    """The names and files of NAME=FILE, each name once."""
    files: dict[str, str] = {}
    for one in given:
        name, separator, file = one.partition("=")
        if not (name and separator and file):
            raise ClientError("--neighbours: NAME=FILE is expected")
        if name in files:
            raise ClientError(f"--neighbours: {name} is there twice")
        files[name] = str(Path(file).resolve())
    return files


@models.command("list")
def models_list(limit: Most = None, as_json: AsJson = False) -> None:
    """List the registered models, each with its newest version."""
    client = connect()
    table(list(client.list_all(client.models, most=limit)), as_json, "name", "latest", "policy_version")


@models.command("policy")
def models_policy(
    name: Annotated[str, typer.Argument(help="The name of the model.")],
    change: Annotated[
        list[str] | None, typer.Option("--set", help="FIELD=VALUE, the value in JSON. Repeat it for more fields.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A JSON file with the new policy. Every field has a default.")
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="Show all policies that the model had.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a model's policy, or change it. Jobs that exist keep the policy that they began with."""
    client = connect()
    if history:
        rows = list(client.list_all(lambda **page: client.policies(name, **page)))
        table(rows, as_json, "policy_version", "at", "api_key_id", "policy")
        return
    model = client.model(name)
    if file or change:
        policy = read_json(file, "--file") if file else model["policy"]
        model = client.set_policy(name, {**policy, **_parse_changes(change or ())}, model["policy_version"])
    show({"policy_version": model["policy_version"], **model["policy"]}, as_json)


@models.command("rechecks")
def models_rechecks(
    name: Annotated[str, typer.Argument(help="The name of the model.")], limit: Most = None, as_json: AsJson = False
) -> None:
    """List when all that a model unlearned was measured in full, and what came back."""
    client = connect()
    rows = list(client.list_all(lambda **page: client.rechecks(name, **page), most=limit))
    columns = ("version", "created_at", "finished_at", "outcome", "requests", "measured", "reopened")
    table(rows, as_json, *columns)


def _parse_changes(changes: Sequence[str]) -> dict[str, object]:
    """The fields that `--set` names. A value that is not JSON is a string.

    Raises:
        ClientError: A change is not of the form FIELD=VALUE, or names a preset, which sets defaults only.
    """
    fields: dict[str, object] = {}
    for change in changes:
        field, equals, value = change.partition("=")
        if not equals:
            raise ClientError("--set: give FIELD=VALUE")
        if field == "preset":
            raise ClientError("--set: a preset changes the defaults of a new policy; use --file")
        try:
            fields[field] = json.loads(value)
        except ValueError:
            fields[field] = value
    return fields


@models.command("download")
def models_download(
    name: Annotated[str, typer.Argument(help="The name of the model.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write the release to.")],
    version: Annotated[str, typer.Option(help="A version number, or latest.")] = "latest",
    delta: Annotated[bool, typer.Option("--delta", help="The change alone, for `unlearnd apply`.")] = False,
    delta_from: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The version that the delta changes: fetch the change alone and apply it."),
    ] = None,
    trust: Annotated[Path | None, typer.Option(help="With --delta-from: the issuer's trust.json.")] = None,
    as_json: AsJson = False,
) -> None:
    """Download a release folder. Resumes a download that stopped, and checks every digest."""
    if delta_from is not None:
        _download_and_apply(name, version, delta_from, folder, trust, as_json=as_json)
        return
    release = _download(name, version, folder, delta=delta, hidden=as_json)
    show({"version": release["version"], "folder": str(folder)}, as_json)


def _download_and_apply(
    name: str, version: str, base: Path, folder: Path, trust: Path | None, *, as_json: bool
) -> None:
    """Fetch a delta beside `folder`, and make `folder` the release. A fetch that stopped is resumed the next time."""
    from service.apply import apply_delta
    from service.audit.verification import VerificationError

    exit_on_sigterm()
    folder = folder.absolute()
    if folder.exists():
        raise ClientError(f"{folder} exists already")
    fetched = folder.with_name(f".{folder.name}.delta")
    release = _download(name, version, fetched, delta=True, hidden=as_json)
    try:
        apply_delta(base, fetched, folder, trust)
    except VerificationError as error:
        raise ClientError(error.reason) from error
    finally:
        shutil.rmtree(fetched)
    show({"version": release["version"], "folder": str(folder)}, as_json)
    print(f"{base} still remembers what version {release['version']} was made to forget.", file=sys.stderr)


def _download(name: str, version: str, folder: Path, *, delta: bool, hidden: bool) -> "VersionAnswer":
    """Fetch a release folder, or its delta, with a bar for each file."""
    client = connect()
    with download_bars(hidden=hidden) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(path: str, done: int, total: int) -> None:
            if path not in tasks:
                tasks[path] = bars.add_task(path, total=total)
            bars.update(tasks[path], completed=done)

        return client.download(name, version, folder, progress, delta=delta)
