"""The signing keys, one for each role, and the `trust.json` that publishes them.

    keys/certificate.pem    ed25519   signs certificates, together with each certificate-NAME.pem
    keys/release.pem        P-256     signs the model files
    keys/log.pem            ed25519   signs the log's checkpoints
    keys/receipt.pem        ed25519   signs receipts at intake; the only signing key that the API holds
    keys/trust.json                   every public key that was ever valid, with its times; has a version and expires

The private key is destroyed as soon as it is retired or revoked; its public key stays in `trust.json` for ever.
"""

import datetime as dt
import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from service.audit import dsse
from service.audit.dsse import PrivateKey, keyid
from service.audit.trust import ROLES
from service.files import CachedFile, write_atomically, write_private

TRUST, LOCK = "trust.json", "lock"
LIFETIME = dt.timedelta(days=365)  # of a trust.json; an auditor who keeps one for longer has to get the current one
GRACE = dt.timedelta(hours=1)  # time for a signature made just before the retirement to reach the log


class KeyEntry(TypedDict):
    """One public key in `trust.json`; times are in ISO 8601."""

    keyid: str
    role: str
    valid_from: str
    public: str
    valid_until: NotRequired[str]
    retired_at: NotRequired[str]
    revoked_at: NotRequired[str]


class KeysNeeded(TypedDict):
    """How many certificate keys must sign a certificate since a time."""

    since: str
    count: int


class TrustContent(TypedDict):
    """The content of `trust.json`."""

    version: NotRequired[int]
    expires: NotRequired[str]
    certificate_keys_needed: NotRequired[list[KeysNeeded]]
    keys: list[KeyEntry]


class NoSuchKey(ValueError):
    """There is no key of that id or name."""


class Keyring:
    """The signing keys in a folder."""

    def __init__(self, folder: Path) -> None:
        """Use the keys in `folder`; a key is read when it is first needed."""
        self._folder = folder
        self._cached: dict[Path, CachedFile[PrivateKey]] = {}

    def create(self) -> None:
        """Bring the folder into order: destroy retired and revoked private keys, make missing keys with mode 0600.

        `trust.json` then names every key.
        """
        with self._locked():
            self._create()

    def _create(self) -> None:
        """`create` for a caller that holds the lock."""
        entries = self._entries()
        ended = {entry["keyid"] for entry in entries if entry.get("retired_at") or entry.get("revoked_at")}
        paths = {self.path(role) for role in ROLES} | set(self._folder.glob("certificate-*.pem"))
        for path in sorted(paths):
            role = path.stem.partition("-")[0]
            if path.exists() and keyid(self._key(path).public_key()) in ended:
                path.unlink()
            key = ec.generate_private_key(ec.SECP256R1()) if role == "release" else Ed25519PrivateKey.generate()
            write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            entries += self._missing_entry(path, role, entries)
        self._write_trust(entries)

    def _missing_entry(self, path: Path, role: str, entries: list[KeyEntry]) -> list[KeyEntry]:
        """The entry of the key at `path`, unless `entries` has one already."""
        key = self._key(path)
        if keyid(key.public_key()) in {entry["keyid"] for entry in entries}:
            return []
        return [_entry(key, role, dt.datetime.fromtimestamp(int(path.stat().st_mtime), dt.UTC))]

    def path(self, role: str) -> Path:
        """The path of the private key of a role."""
        return self._folder / f"{role}.pem"

    def private(self, role: str) -> PrivateKey:
        """The private key of a role, as its file is now."""
        return self._key(self.path(role))

    def sign(self, role: str, payload: bytes, payload_type: str) -> bytes:
        """A DSSE envelope around `payload`, as JSON bytes, signed by the role's key; every certificate key signs."""
        further = sorted(self._folder.glob("certificate-*.pem")) if role == "certificate" else []
        return dsse.sign(payload, payload_type, [self._key(path) for path in (self.path(role), *further)])

    def sign_model(self, folder: Path, target: Path) -> None:
        """Write an OpenSSF Model Signing bundle over every file of a folder, hidden files included, to `target`."""
        from model_signing import hashing, signing  # takes half a second to import

        all_files = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)  # type: ignore[no-untyped-call]
        signer = signing.Config().use_elliptic_key_signer(private_key=self.path("release"))  # type: ignore[no-untyped-call]
        signer.set_hashing_config(all_files).sign(folder, target)

    def trust(self) -> bytes:
        """The bytes of `trust.json`, for publication."""
        return (self._folder / TRUST).read_bytes()

    def must_renew(self) -> bool:
        """Whether less than half of the time of `trust.json` is left."""
        return _must_renew(self._read_trust())

    def renew(self) -> None:
        """Write `trust.json` with a new expiry if less than half of its time is left."""
        if self.must_renew():
            with self._locked():
                self._write_trust(self._entries())

    def rotate(self, name: str) -> str:
        """Retire a key and make a new one; returns the keyid of the new key.

        Signatures of the old key that the log already holds stay valid. If the process is killed between the mark in
        `trust.json` and the new key, the next `rotate`, `revoke` or `create` finishes the rotation.

        Args:
            name: A role, or the file name of a further certificate key without `.pem`.

        Raises:
            NoSuchKey: There is no such key file.
        """
        with self._locked():
            self._create()
            if not (name in ROLES or name.startswith("certificate-")) or not self.path(name).exists():
                raise NoSuchKey(f"there is no key {name}")
            self._mark(keyid(self.private(name).public_key()), "retired_at", dt.datetime.now(dt.UTC) + GRACE)
            self._create()
            return keyid(self.private(name).public_key())

    def revoke(self, revoked: str) -> None:
        """Make every signature of this key invalid, and replace the key if it was in use.

        Raises:
            NoSuchKey: `trust.json` has no key of this id.
        """
        with self._locked():
            if revoked not in {entry["keyid"] for entry in self._entries()}:
                raise NoSuchKey(f"trust.json names no key {revoked}")
            self._mark(revoked, "revoked_at", dt.datetime.now(dt.UTC))
            self._create()

    @contextmanager
    def keys_held(self) -> Iterator[None]:
        """Prevent key replacement for a while, so that everything is signed by the keys of one `trust.json`."""
        with (self._folder / LOCK).open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield

    def _mark(self, ended: str, mark: Literal["retired_at", "revoked_at"], when: dt.datetime) -> None:
        """Enter into `trust.json` that a key was retired or revoked."""
        entries = self._entries()
        for entry in entries:
            if entry["keyid"] == ended:
                entry[mark] = when.isoformat(timespec="seconds")
        self._write_trust(entries)

    def _key(self, path: Path) -> PrivateKey:
        """The key as its file is now; an unchanged file is not parsed again."""
        return self._cached.setdefault(path, CachedFile(path, partial(_parse, path)))()

    def _read_trust(self) -> TrustContent:
        path = self._folder / TRUST
        content: TrustContent = json.loads(path.read_bytes()) if path.exists() else {"keys": []}
        return content

    def _entries(self) -> list[KeyEntry]:
        return list(self._read_trust()["keys"])

    def _write_trust(self, entries: list[KeyEntry]) -> None:
        """Write `trust.json` with the next version and a new expiry, unless nothing changed and half its time is left.

        A new number of certificate keys is required from now on, not for older certificates.
        """
        old, now = self._read_trust(), dt.datetime.now(dt.UTC)
        needed = list(old.get("certificate_keys_needed", []))
        count = 1 + len(list(self._folder.glob("certificate-*.pem")))
        if not needed or needed[-1]["count"] != count:
            since = now if needed else dt.datetime.fromtimestamp(0, dt.UTC)
            needed.append({"since": since.isoformat(timespec="seconds"), "count": count})
        if (entries, needed) == (old["keys"], old.get("certificate_keys_needed")) and not _must_renew(old):
            return
        content: TrustContent = {
            "version": old.get("version", 0) + 1,
            "expires": (now + LIFETIME).isoformat(timespec="seconds"),
            "certificate_keys_needed": needed,
            "keys": entries,
        }
        write_atomically(self._folder / TRUST, json.dumps(content, sort_keys=True, indent=1))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the exclusive lock of the folder; makes the folder if it is missing."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / LOCK).open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _must_renew(content: TrustContent) -> bool:
    """Whether less than half of the time of a `trust.json` is left; true for one without an expiry."""
    expires = content.get("expires")
    return expires is None or dt.datetime.fromisoformat(expires) - dt.datetime.now(dt.UTC) < LIFETIME / 2


def _parse(path: Path, pem: bytes) -> PrivateKey:
    """Read a private key; `path` is for the error message."""
    key = load_pem_private_key(pem, None)
    if not isinstance(key, PrivateKey):
        raise ValueError(f"{path}: signing keys are ed25519 or P-256")
    return key


def _entry(key: PrivateKey, role: str, since: dt.datetime) -> KeyEntry:
    """The `trust.json` entry of a key that is valid from `since`."""
    public = key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return {"keyid": keyid(public), "role": role, "valid_from": since.isoformat(), "public": pem}
