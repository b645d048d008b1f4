"""Commands that need files alone: no service, no network."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from service.cli.console import AsJson, app, screen

if TYPE_CHECKING:
    from service.audit.verification import VerificationError

Trust = Annotated[Path, typer.Option(help="trust.json, obtained from the issuer by other means")]


def _refuse(error: "VerificationError", as_json: bool) -> NoReturn:
    """Say why, and end with the code."""
    if as_json:
        print(json.dumps({"valid": False, "code": int(error.code), "name": error.code.name, "reason": error.reason}))
    else:
        screen.print(f"NOT VALID ({int(error.code)} {error.code.name}): {error.reason}", style="red", markup=False)
    raise typer.Exit(int(error.code)) from error


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a release folder")],
    trust: Annotated[Path | None, typer.Option(help="trust.json, obtained from the issuer by other means")] = None,
    parent: Annotated[Path | None, typer.Option(help="the release folder of the version before")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a release folder offline; exit code 0 only if all holds."""
    from service.audit.verification import VerificationError
    from service.audit.verify import STEPS
    from service.audit.verify import verify as check

    done: list[str] = []

    def passed(step: str) -> None:
        done.append(step)
        if not as_json:
            screen.print(f"{len(done)}/{len(STEPS)} {step}: holds", highlight=False)

    try:
        found = check(folder, trust, parent, passed=passed)
    except VerificationError as error:
        _refuse(error, as_json)
    lineage = found.statement["predicate"]["lineage"]
    count = len(found.statement["subject"])
    if as_json:
        answer = {"valid": True, "code": 0, "steps": done, "keyids": found.keyids, "own_trust": found.own_trust}
        answer["checkpoint"] = found.checkpoint.body
        print(json.dumps({**answer, **lineage}))
        return
    print(f"verified: {lineage['model']} version {lineage['version']}, {count} files, signed by {found.keyids[0][:16]}")
    if found.own_trust:
        screen.print("The key came with the release: this shows integrity. Use --trust for origin.", style="yellow")


@app.command("verify-log")
def verify_log(
    export: Annotated[Path, typer.Argument(metavar="FILE", help="an exported log")],
    trust: Trust,
    older: Annotated[Path | None, typer.Option(help="a checkpoint that you kept, or an older export")] = None,
    as_json: AsJson = False,
) -> None:
    """Check an exported log offline; exit code 0 only if all holds."""
    from service.audit.verification import VerificationError
    from service.audit.verify_log import verify_log as check

    try:
        found = check(export, trust, older)
    except VerificationError as error:
        _refuse(error, as_json)
    checkpoint = found.checkpoint
    if as_json:
        print(json.dumps({"valid": True, "code": 0, "origin": checkpoint.origin, "size": checkpoint.size}))
    else:
        print(f"verified: {checkpoint.origin}, {checkpoint.size} entries, {found.requests} requests")


@app.command("verify-record")
def verify_record(
    certificate: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="a release folder, or a certificate")],
    receipt: Annotated[Path, typer.Option(help="the answer to the submission, as JSON")],
    trust: Trust,
    text: Annotated[str | None, typer.Option(help="the record's exact text")] = None,
    file: Annotated[Path | None, typer.Option(help="a file that is the record's exact text")] = None,
    as_json: AsJson = False,
) -> None:
    """Show offline that a text was in a certificate's request; exit code 60 if it was not."""
    from service.audit.receipt import verify_record as check
    from service.audit.verification import VerificationError

    if (text is None) == (file is None):
        raise typer.BadParameter("give either --text or --file")
    try:
        found = check(receipt, text.encode() if text is not None else file.read_bytes(), certificate, trust)  # type: ignore[union-attr]
    except VerificationError as error:
        _refuse(error, as_json)
    if as_json:
        print(json.dumps({"valid": True, "code": 0, **asdict(found)}))
    else:
        print(
            f"verified: the text is record {found.record} of request {found.ref}, which has the verdict {found.verdict}"
        )


@app.command()
def render(
    certificate: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="a release folder, or a certificate")],
    output: Annotated[Path, typer.Option(help="a file that ends in .html or .md")],
    trust: Annotated[Path | None, typer.Option(help="trust.json; by default the folder's own")] = None,
) -> None:
    """Write a record down for people, from the signed bytes; refuses a certificate whose signature does not hold."""
    from service.audit.render import html, markdown
    from service.audit.verification import CERTIFICATE, VerificationError, load_trust, open_certificate

    file = certificate / CERTIFICATE if certificate.is_dir() else certificate
    try:
        statement, _ = open_certificate(file.read_bytes(), load_trust(trust or file.with_name("trust.json")))
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read") from error
    except VerificationError as error:
        _refuse(error, as_json=False)
    output.write_text(markdown(statement) if output.suffix == ".md" else html(statement))
