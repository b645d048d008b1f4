"""`unlearnd keys`: API keys, over HTTP, and the signing keys in the keys folder."""

import hashlib
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import connect
from service.cli.console import AsJson, Most, keys, show, stderr_console, table
from service.cli.local_services import DataDir, local_services

if TYPE_CHECKING:
    from service.bootstrap import Services


@keys.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="A name by which you recognise the key.")],
    scope: Annotated[list[str], typer.Option(help="What the key may do. Repeat it for more scopes.")],
    as_json: AsJson = False,
) -> None:
    """Create an API key. The key is shown only this once."""
    show(connect().call("POST", "/v1/api-keys", json={"name": name, "scopes": scope}), as_json)


@keys.command("list")
def keys_list(limit: Most = None, as_json: AsJson = False) -> None:
    """List the API keys, oldest first. Their secrets are stored nowhere."""
    rows = connect().api_keys()["items"][:limit]
    shown = rows if as_json else [{**row, "scopes": " ".join(row["scopes"])} for row in rows]
    table(shown, as_json, "id", "name", "scopes", "created_at", "revoked_at")


@keys.command("revoke")
def keys_revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="The id of the API key.")]) -> None:
    """Revoke an API key for good."""
    connect().call("DELETE", f"/v1/api-keys/{key_id}")


@keys.command("init")
def keys_init() -> None:
    """Create the key-encryption key and the signing keys in UNLEARND_KEYS_DIR. Existing keys stay."""
    from service.bootstrap import create_keys
    from service.config import Settings

    create_keys(Settings())


@keys.command("bootstrap")
def keys_bootstrap(name: Annotated[str, typer.Option(help="The name of the key.")] = "first admin") -> None:
    """Create an admin API key in the database, for a server that has none yet. It is shown only this once."""
    from service.config import Settings
    from service.db.api_keys import SCOPES, create
    from service.db.session import Database

    settings = Settings()
    settings.require("database_url")
    with (
        closing(Database(settings.database_url, pool_size=1, pooler=settings.database_pooler)) as database,
        database.transaction() as session,
    ):
        _, secret = create(session, name, list(SCOPES))
    print(secret)


@keys.command("rotate")
def keys_rotate(
    role: Annotated[str, typer.Argument(help="certificate, release, log, receipt, or certificate-NAME.")],
    data_dir: DataDir = None,
) -> None:
    """Retire the signing key of a role and begin a new one. What the log already has stays valid."""
    from service.db import log_entries
    from service.evidence.keyring import NoSuchKey

    services = local_services(data_dir)
    try:
        keyid = services.keyring.rotate(role)
    except NoSuchKey as error:
        raise typer.BadParameter(str(error), param_hint="ROLE") from error
    with services.db.transaction() as session:
        log_entries.append(session, "key.rotated", role=role, keyid=keyid)
    _print_fingerprint(services)
    services.close()


@keys.command("rotate-master")
def keys_rotate_master(
    kms_key_id: Annotated[
        str | None, typer.Option(help="The KMS key that replaces the present one. Stop the service first.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Replace the key-encryption key and destroy the old one. Requests stay readable, keyed hashes stay the same."""
    from service.domain.errors import Conflict
    from service.steps.operator.rotate import rotate_master_key

    services = local_services(data_dir)
    try:
        count = rotate_master_key(services, kms_key_id)
    except Conflict as error:
        raise typer.BadParameter(error.detail, param_hint="--kms-key-id") from error
    if data_dir is not None:
        from service.local.keys import compute_keys

        compute_keys(services.settings.keys_dir)
    services.close()
    stderr_console.print(f"wrapped again: {count} epoch keys", highlight=False)


@keys.command("distrust")
def keys_distrust(
    keyid: Annotated[str, typer.Argument(help="The id of a signing key, from trust.json.")], data_dir: DataDir = None
) -> None:
    """Revoke a signing key that others may know. Nothing that it ever signed is valid any more."""
    from service.db import log_entries
    from service.evidence.keyring import NoSuchKey

    services = local_services(data_dir)
    try:
        services.keyring.revoke(keyid)
    except NoSuchKey as error:
        raise typer.BadParameter(str(error), param_hint="KEYID") from error
    with services.db.transaction() as session:
        log_entries.append(session, "key.revoked", keyid=keyid)
    _print_fingerprint(services)
    services.close()


@keys.command("trust")
def keys_trust(data_dir: DataDir = None) -> None:
    """Print trust.json, and on standard error its fingerprint, which you read out over the telephone."""
    services = local_services(data_dir)
    sys.stdout.buffer.write(services.keyring.trust())  # exactly these bytes: the fingerprint is their digest
    sys.stdout.buffer.flush()
    _print_fingerprint(services)
    services.close()


def _print_fingerprint(services: "Services") -> None:
    digest = hashlib.sha256(services.keyring.trust()).hexdigest()
    message = f"sha256 of trust.json, to be compared over another channel: {digest}"
    stderr_console.print(message, highlight=False, soft_wrap=True)
