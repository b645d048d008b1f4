"""Commands that need only files: no service, and no network unless `verify --log` names a URL."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from service.cli.console import AsJson, app, exit_on_sigterm, print_message, stderr_console

if TYPE_CHECKING:
    from service.audit.standing import Standing
    from service.audit.verification import VerificationError
    from service.audit.verify import Verified

OWN_TRUST = "The key came with the release: this shows integrity. Use --trust for origin."
TRUST_HELP = "The issuer's trust.json, which you got from the issuer and not with the release."
Trust = Annotated[Path, typer.Option(help=TRUST_HELP)]
OptionalTrust = Annotated[Path | None, typer.Option(help=TRUST_HELP)]
Certificate = Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="A release folder, or a certificate file.")]
Parent = Annotated[Path | None, typer.Option(help="The release folder of the version before.")]
OlderCheckpoint = Annotated[Path | None, typer.Option(help="A checkpoint that you kept, or an older export.")]
Witnesses = Annotated[
    list[str] | None,
    typer.Option("--witness", metavar="VKEY", help="A witness that must have cosigned the log. Repeat it for more."),
]
WitnessedWithin = Annotated[
    float, typer.Option(metavar="DAYS", min=0, help="How old a cosignature may be. An old export needs more.")
]
LogOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|URL", help="An exported log, or the service's URL; tells withdrawn and superseded versions."
    ),
]
Receipt = Annotated[Path, typer.Option(help="The receipt: the JSON answer to the submission.")]


def _exit_invalid(error: "VerificationError", as_json: bool) -> NoReturn:
    """Print why the verification failed, and exit with the error's code."""
    if as_json:
        print(json.dumps({"valid": False, "code": int(error.code), "name": error.code.name, "reason": error.reason}))
    else:
        message = f"NOT VALID ({int(error.code)} {error.code.name}): {error.reason}"
        stderr_console.print(message, style="red", markup=False)
    raise typer.Exit(int(error.code)) from error


@app.command("verify")
def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A release folder.")],
    trust: OptionalTrust = None,
    parent: Parent = None,
    log: LogOption = None,
    as_json: AsJson = False,
) -> None:
    """Check a release folder, offline unless --log is a URL. The exit code is 0 only if every check holds."""
    from service.audit.verification import VerificationError
    from service.audit.verify import STEPS, verify

    done: list[str] = []

    def passed(step: str) -> None:
        done.append(step)
        if not as_json:
            stderr_console.print(f"{len(done)}/{len(STEPS)} {step}: holds", highlight=False)

    try:
        verified = verify(folder, trust, parent, passed=passed)
        standing = _check_standing(log, verified) if log is not None else None
    except VerificationError as error:
        _exit_invalid(error, as_json)
    lineage, keyids = verified.statement["predicate"]["lineage"], verified.keyids
    count = len(verified.statement["subject"])
    attacks = verified.statement["predicate"]["verification"]["attacks"]
    if as_json:
        answer = {"valid": True, "code": 0, "steps": done, "keyids": keyids, "own_trust": verified.own_trust}
        answer["checkpoint"] = verified.checkpoint.body
        answer["attacks"] = {attack["name"]: attack["result"] or attack["status"] for attack in attacks}
        print(json.dumps({**answer, **lineage, **(asdict(standing) if standing else {})}))
        return
    reported = [attack for attack in attacks if attack.get("effect") == "report"]
    if failed := ", ".join(attack["name"] for attack in reported if attack["result"] == "FAIL"):
        print_message(f"It did not withstand these attacks, which the policy only reports: {failed}.", style="yellow")
    asked = [attack for attack in attacks if attack["result"] is None and attack.get("effect") in ("report", "block")]
    if left_out := ", ".join(f"{attack['name']} ({attack['why']})" for attack in asked):
        print_message(f"These attacks, which the policy names, were not made: {left_out}.", style="yellow")
    print(f"verified: {lineage['model']} version {lineage['version']}, {count} files, signed by {keyids[0][:16]}")
    if verified.own_trust:
        stderr_console.print(OWN_TRUST, style="yellow")
    if standing and standing.superseded_by is not None:
        print_message(f"This version was superseded: version {standing.superseded_by} is newer.", style="yellow")
    if standing and standing.overdue:
        print_message(f"Of the log: {standing.overdue}.", style="yellow")


@app.command("apply")
def apply_command(
    base: Annotated[Path, typer.Argument(metavar="BASE_DIR", help="The version that the delta changes.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `models download --delta` wrote.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="The new release folder; it must not exist yet.")],
    trust: OptionalTrust = None,
    as_json: AsJson = False,
) -> None:
    """Rebuild a release folder from an earlier version and a delta, and verify it. Leaves nothing if it fails."""
    from service.apply import apply_delta
    from service.audit.verification import VerificationError

    exit_on_sigterm()
    try:
        verified = apply_delta(base, folder, out, trust)
    except VerificationError as error:
        _exit_invalid(error, as_json)
    _print_made(verified, "rebuilt and verified:", out, as_json)
    if not as_json:
        version = verified.statement["predicate"]["lineage"]["version"]
        message = f"{base} still remembers what version {version} was made to forget."
        stderr_console.print(message, style="yellow", markup=False)


def _print_made(verified: "Verified", what: str, out: Path, as_json: bool, **more: str) -> None:
    """Print what was made of a release, and where."""
    lineage, own_trust = verified.statement["predicate"]["lineage"], verified.own_trust
    if as_json:
        named = {"model": lineage["model"], "version": lineage["version"], **more, "own_trust": own_trust}
        print(json.dumps({"valid": True, "code": 0, **named}))
        return
    print(f"{what} {lineage['model']} version {lineage['version']} in {out}")
    if own_trust:
        stderr_console.print(OWN_TRUST, style="yellow")


@app.command("quantise")
def quantise_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A release folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="The new folder; it must not exist yet.")],
    scheme: Annotated[str, typer.Option(help="int8, int4, q8_0 or q4_k_m: one that the certificate lists with PASS.")],
    trust: OptionalTrust = None,
    as_json: AsJson = False,
) -> None:
    """Make a certified quantised copy of a release's model, for vLLM, transformers or llama.cpp."""
    from service.audit.verification import VerificationError
    from service.gguf import TYPES
    from service.quantise import quantise_release
    from service.quantised import SCHEMES

    if scheme not in {**SCHEMES, **TYPES}:
        raise typer.BadParameter(f"one of {', '.join({**SCHEMES, **TYPES})}", param_hint="--scheme")
    exit_on_sigterm()
    try:
        verified = quantise_release(folder, out, scheme, trust)
    except VerificationError as error:
        _exit_invalid(error, as_json)
    _print_made(verified, f"made and verified: {scheme} of", out, as_json, scheme=scheme)


def _check_standing(log: str, verified: "Verified") -> "Standing":
    """What a log says of a verified release; `log` is an exported log, or the URL of a service."""
    from service.audit.standing import check_standing

    with _exported(log) as export:
        return check_standing(export, verified)


@contextmanager
def _exported(log: str) -> Iterator[Path]:
    """The file of an exported log; an export of a service's log lasts as long as the block."""
    if not log.startswith(("http://", "https://")):
        yield Path(log)
        return
    from service.client.http import Client
    from service.client.operations import api_key

    with TemporaryDirectory() as folder, Client(log, api_key()) as client:
        export = Path(folder, "log.jsonl")
        export.write_text("".join(line + "\n" for line in client.export_log()))
        yield export


@app.command("verify-log")
def verify_log_command(
    export: Annotated[Path, typer.Argument(metavar="FILE", help="An exported log.")],
    trust: Trust,
    older: OlderCheckpoint = None,
    witness: Witnesses = None,
    witnessed_within: WitnessedWithin = 7,
    as_json: AsJson = False,
) -> None:
    """Check an exported log offline. The exit code is 0 only if every check holds."""
    from service.audit.verification import VerificationError
    from service.audit.verify_log import verify_log

    try:
        within = timedelta(days=witnessed_within)
        verified = verify_log(export, trust, older, witnesses=witness or (), witnessed_within=within)
    except VerificationError as error:
        _exit_invalid(error, as_json)
    checkpoint, unreadable = verified.checkpoint, verified.unreadable
    if as_json:
        members = {"origin": checkpoint.origin, "size": checkpoint.size, "unreadable": unreadable}
        if verified.witnessed:
            members["witnessed"] = {"size": verified.witnessed.size, "at": verified.witnessed.at.isoformat()}
        print(json.dumps({"valid": True, "code": 0, **members}))
    else:
        print(f"verified: {checkpoint.origin}, {checkpoint.size} entries, {verified.requests} requests")
        if verified.witnessed:
            at, size = verified.witnessed.at, verified.witnessed.size
            print(f"cosigned by {len(witness or ())} witnesses at {at:%Y-%m-%d %H:%M} UTC: {size} entries")
        if unreadable:
            print(
                f"{len(unreadable)} entries cannot be read and prove nothing; the first has the index {unreadable[0]}"
            )


@app.command("verify-record")
def verify_record_command(
    certificate: Certificate,
    receipt: Receipt,
    trust: Trust,
    text: Annotated[str | None, typer.Option(help="The exact text of the record.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file that holds the exact text of the record.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prove offline that a text was in a request of a certificate. The exit code is 60 if it was not."""
    from service.audit.receipt import verify_record
    from service.audit.verification import VerificationError

    if (text is None) == (file is None):
        raise typer.BadParameter("give either --text or --file")
    try:
        record = text.encode() if text is not None else file.read_bytes()  # type: ignore[union-attr]
        match = verify_record(receipt, record, certificate, trust)
    except VerificationError as error:
        _exit_invalid(error, as_json)
    if as_json:
        print(json.dumps({"valid": True, "code": 0, **asdict(match)}))
    else:
        print(
            f"verified: the text is record {match.record} of request {match.ref}, which has the verdict {match.verdict}"
        )


@app.command("render")
def render_command(
    certificate: Certificate,
    output: Annotated[Path, typer.Option(help="The file to write; its name ends in .html or .md.")],
    trust: Annotated[Path | None, typer.Option(help="A trust.json. The default is the one in the folder.")] = None,
) -> None:
    """Write a certificate as a page for people. Refuses a certificate whose signature does not hold."""
    from service.audit.render import html, markdown
    from service.audit.verification import (
        CERTIFICATE,
        VerificationError,
        load_given_trust,
        load_trust,
        open_certificate,
    )

    file = certificate / CERTIFICATE if certificate.is_dir() else certificate
    try:
        trusted = load_given_trust(trust) if trust is not None else load_trust(file.with_name("trust.json"))
        statement, _ = open_certificate(file.read_bytes(), trusted)
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read") from error
    except VerificationError as error:
        _exit_invalid(error, as_json=False)
    output.write_text(markdown(statement) if output.suffix == ".md" else html(statement))
