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
from functools import partial
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
from service.files import CachedFile, write_atomically, write_private

TRUST, LOCK = "trust.json", "lock"
GRACE = dt.timedelta(hours=1)  # what a key signed just before it was retired may still be on its way into the log


class NoSuchKey(ValueError):
    """`trust.json` has no key of that id."""


class Keyring:
    """The keys in a folder."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`; nothing is read before it is needed."""
        self._folder = folder
        self._read: dict[Path, CachedFile[PrivateKey]] = {}

    def create(self) -> None:
        """Destroy what is retired or revoked, make what is missing, mode 0600, and enter what `trust.json` lacks."""
        with self._locked():
            self._create()

    def _create(self) -> None:
        entries = self._entries()
        ended = {entry["keyid"] for entry in entries if entry.get("retired_at") or entry.get("revoked_at")}
        paths = {self.path(role) for role in ROLES} | set(self._folder.glob("certificate-*.pem"))
        for path in sorted(paths):
            role = path.stem.partition("-")[0]
            if path.exists() and keyid(self._key(path).public_key()) in ended:
                path.unlink()
            key = ec.generate_private_key(ec.SECP256R1()) if role == "release" else Ed25519PrivateKey.generate()
            write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            entries += self._unknown(path, role, entries)
        self._write(entries)

    def _unknown(self, path: Path, role: str, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The entry of a key that has none."""
        key = self._key(path)
        if keyid(key.public_key()) in {entry["keyid"] for entry in entries}:
            return []
        return [_entry(key, role, dt.datetime.fromtimestamp(int(path.stat().st_mtime), dt.UTC))]

    def path(self, role: str) -> Path:
        """The private key's file."""
        return self._folder / f"{role}.pem"

    def private(self, role: str) -> PrivateKey:
        """The private key, as its file is now."""
        return self._key(self.path(role))

    def sign(self, role: str, payload: bytes, payload_type: str) -> bytes:
        """A DSSE envelope over `payload` by the role's key, and by each owner's of a certificate, as JSON bytes."""
        paths = [self.path(role), *(sorted(self._folder.glob("certificate-*.pem")) if role == "certificate" else ())]
        return sign_envelope(payload, payload_type, [self._key(path) for path in paths])

    def sign_model(self, folder: Path, target: Path) -> None:
        """An OpenSSF Model Signing bundle over every file of a folder, hidden ones included, at `target`."""
        from model_signing import hashing, signing  # half a second to import

        everything = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)  # type: ignore[no-untyped-call]
        signer = signing.Config().use_elliptic_key_signer(private_key=self.path("release"))  # type: ignore[no-untyped-call]
        signer.set_hashing_config(everything).sign(folder, target)

    def trust(self) -> bytes:
        """`trust.json`, to be published."""
        return (self._folder / TRUST).read_bytes()

    def rotate(self, name: str) -> str:
        """Retire the key of a role (or a second owner's, by its file's name) and begin another; returns its keyid.

        What the log has of before still counts. Killed between the mark in `trust.json` and the new key, it is
        finished by whatever comes next: this, `revoke` or `create`.

        Raises:
            NoSuchKey: There is no such file.
        """
        with self._locked():
            self._create()
            if not (name in ROLES or name.startswith("certificate-")) or not self.path(name).exists():
                raise NoSuchKey(f"there is no key {name}")
            self._mark(keyid(self.private(name).public_key()), "retired_at", dt.datetime.now(dt.UTC) + GRACE)
            self._create()
            return keyid(self.private(name).public_key())

    def revoke(self, revoked: str) -> None:
        """Let nothing that this key ever signed count, and begin another if it was in use.

        Raises:
            NoSuchKey: There is none.
        """
        with self._locked():
            if revoked not in {entry["keyid"] for entry in self._entries()}:
                raise NoSuchKey(f"trust.json names no key {revoked}")
            self._mark(revoked, "revoked_at", dt.datetime.now(dt.UTC))
            self._create()

    @contextmanager
    def keys_held(self) -> Iterator[None]:
        """No key is replaced meanwhile: for what has to be signed by the keys of one `trust.json`."""
        with (self._folder / LOCK).open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield

    def _mark(self, ended: str, mark: str, when: dt.datetime) -> None:
        entries = self._entries()
        for entry in entries:
            if entry["keyid"] == ended:
                entry[mark] = when.isoformat(timespec="seconds")
        self._write(entries)

    def _key(self, path: Path) -> PrivateKey:
        """The key as its file is now; one that has not changed is not parsed again."""
        return self._read.setdefault(path, CachedFile(path, partial(_parse, path)))()

    def _read_trust(self) -> dict[str, Any]:
        path = self._folder / TRUST
        found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {"keys": []}
        return found

    def _entries(self) -> list[dict[str, Any]]:
        return list(self._read_trust()["keys"])

    def _write(self, entries: list[dict[str, Any]]) -> None:
        """`trust.json`; that another number of certificate keys must sign is so from now on, not for what was."""
        needed = list(self._read_trust().get("certificate_keys_needed", []))
        count = 1 + len(list(self._folder.glob("certificate-*.pem")))
        if not needed or needed[-1]["count"] != count:
            since = dt.datetime.now(dt.UTC) if needed else dt.datetime.fromtimestamp(0, dt.UTC)
            needed.append({"since": since.isoformat(timespec="seconds"), "count": count})
        content = {"version": 1, "certificate_keys_needed": needed, "keys": entries}
        write_atomically(self._folder / TRUST, json.dumps(content, sort_keys=True, indent=1))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / LOCK).open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _parse(path: Path, pem: bytes) -> PrivateKey:
    key = load_pem_private_key(pem, None)
    if not isinstance(key, PrivateKey):
        raise ValueError(f"{path}: signing keys are ed25519 or P-256")
    return key


def _entry(key: PrivateKey, role: str, since: dt.datetime) -> dict[str, Any]:
    public = key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return {"keyid": keyid(public), "role": role, "valid_from": since.isoformat(), "public": pem}
