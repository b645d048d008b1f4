"""The signing keys, one a role, and the `trust.json` that names them.

    keys/certificate.pem    ed25519   signs records; a second owner's is certificate-NAME.pem, and both sign
    keys/release.pem        P-256     signs the model files
    keys/log.pem            ed25519   signs the log's checkpoints
    keys/receipt.pem        ed25519   signs receipts at intake; the only one that the API holds
    keys/trust.json                   every public key that ever counted, with the times

A retired or revoked private key is destroyed at once; its public key stays in `trust.json` for ever.
"""

import datetime as dt
import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)  # fmt: skip

from service.audit.dsse import PrivateKey, keyid
from service.audit.dsse import sign as sign_envelope
from service.audit.trust import ROLES
from service.privacy.envelope import write_private
from service.storage.local import write_whole

TRUST = "trust.json"
GRACE = dt.timedelta(hours=1)  # what a key signed just before it was retired may still be on its way into the log


class NoSuchKey(ValueError):
    """`trust.json` has no key of that id."""


class Keyring:
    """The keys in a folder."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`; nothing is read before it is needed."""
        self._folder = folder

    def create(self) -> None:
        """Make the keys that are missing, mode 0600, and enter those that `trust.json` does not name."""
        with self._locked():
            self._create()

    def _create(self) -> None:
        for role in ROLES:
            key = ec.generate_private_key(ec.SECP256R1()) if role == "release" else Ed25519PrivateKey.generate()
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_private(self._folder / f"{role}.pem", pem)
        entries = self._entries()
        known = {entry["keyid"] for entry in entries}
        for role in ROLES:
            for path, key in self._keys(role):
                if keyid(key.public_key()) not in known:
                    since = dt.datetime.fromtimestamp(int(path.stat().st_mtime), dt.UTC)
                    entries.append(_entry(key, role, since))
        self._write(entries)

    def path(self, role: str) -> Path:
        """The private key's file."""
        return self._folder / f"{role}.pem"

    def private(self, role: str) -> PrivateKey:
        """The private key."""
        return _read(self.path(role))

    def sign(self, role: str, payload: bytes, payload_type: str) -> bytes:
        """A DSSE envelope over `payload` by every key of the role, as JSON bytes."""
        return sign_envelope(payload, payload_type, [key for _, key in self._keys(role)])

    def sign_model(self, folder: Path, target: Path) -> None:
        """An OpenSSF Model Signing bundle over every file of a folder, hidden ones included, at `target`."""
        from model_signing import hashing, signing  # half a second to import

        everything = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)  # type: ignore[no-untyped-call]
        signer = signing.Config().use_elliptic_key_signer(private_key=self.path("release"))  # type: ignore[no-untyped-call]
        signer.set_hashing_config(everything).sign(folder, target)

    def trust(self) -> bytes:
        """`trust.json`, to be published."""
        return (self._folder / TRUST).read_bytes()

    def rotate(self, role: str) -> str:
        """Retire the key of a role and begin another; returns its keyid. What the log has of before still counts."""
        with self._locked():
            self._end(role, keyid(self.private(role).public_key()), "retired_at", dt.datetime.now(dt.UTC) + GRACE)
            return keyid(self.private(role).public_key())

    def revoke(self, revoked: str) -> None:
        """Let nothing that this key ever signed count, and begin another if it was in use.

        Raises:
            NoSuchKey: There is none.
        """
        with self._locked():
            role = next((entry["role"] for entry in self._entries() if entry["keyid"] == revoked), None)
            if role is None:
                raise NoSuchKey(f"trust.json names no key {revoked}")
            self._end(role, revoked, "revoked_at", dt.datetime.now(dt.UTC))

    def _end(self, role: str, ended: str, mark: str, when: dt.datetime) -> None:
        """Mark a key, then destroy its private half and make another for the role; killed between, it is done again."""
        entries = self._entries()
        for entry in entries:
            if entry["keyid"] == ended:
                entry[mark] = when.isoformat(timespec="seconds")
        self._write(entries)
        for path, key in self._keys(role):
            if keyid(key.public_key()) == ended:
                path.unlink()
        self._create()

    def _keys(self, role: str) -> list[tuple[Path, PrivateKey]]:
        paths = [self.path(role), *sorted(self._folder.glob(f"{role}-*.pem"))]
        return [(path, _read(path)) for path in paths]

    def _entries(self) -> list[dict[str, Any]]:
        path = self._folder / TRUST
        return list(json.loads(path.read_bytes())["keys"]) if path.exists() else []

    def _write(self, entries: list[dict[str, Any]]) -> None:
        needed = len(self._keys("certificate"))
        content = {"version": 1, "certificate_keys_needed": needed, "keys": entries}
        write_whole(self._folder / TRUST, json.dumps(content, sort_keys=True, indent=1))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _read(path: Path) -> PrivateKey:
    key = load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, PrivateKey):
        raise ValueError(f"{path}: signing keys are ed25519 or P-256")
    return key


def _entry(key: PrivateKey, role: str, since: dt.datetime) -> dict[str, Any]:
    public = key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return {"keyid": keyid(public), "role": role, "valid_from": since.isoformat(), "public": pem}
