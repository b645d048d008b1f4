"""OpenDSR 2.0 and OpenGDPR 1.0, the processor's side: signatures and status bodies.

Every answer and every callback carries the processor's domain and, in base64, an RSA signature (PKCS #1 v1.5, SHA-256)
over the exact bytes of the body. The RSA key and its X.509 certificate are in the keys folder. `unlearnd keys init`
creates a self-signed certificate, which an operator replaces by one from a trusted authority.
"""

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from service.db.tables import DeletionRequest
from service.domain.json_types import JsonObject
from service.domain.notifications import dsr_word
from service.domain.states import TERMINAL_REQUESTS
from service.files import write_private

KEY, CERTIFICATE = "opendsr.pem", "opendsr.crt"
KEY_BITS, YEARS = 3072, 10
LATE_EXTENSION = timedelta(days=1)  # a request that failed or is late is expected this long from now


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between the two: the version in the body, and the name in the headers."""

    api_version: str
    header: str

    def headers(self, signer: "Signer", body: bytes) -> dict[str, str]:
        """The headers of a signed body."""
        prefix = f"X-{self.header}"
        return {f"{prefix}-Processor-Domain": signer.domain, f"{prefix}-Signature": signer.sign(body)}


DIALECTS = {"opendsr": Dialect("2.0", "OpenDSR"), "opengdpr": Dialect("1.0", "OpenGDPR")}


class Signer:
    """The processor's RSA key and its certificate."""

    def __init__(self, folder: Path, domain: str) -> None:
        """Use the files in `folder`. They are read at their first use."""
        self._folder, self.domain = folder, domain

    def create(self) -> None:
        """Create a key and a self-signed certificate for the domain. Existing files stay."""
        if not (self._folder / KEY).exists():
            key = rsa.generate_private_key(65537, KEY_BITS)
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_private(self._folder / KEY, pem)
        if not (self._folder / CERTIFICATE).exists():
            write_private(self._folder / CERTIFICATE, self._self_signed().public_bytes(Encoding.PEM))

    def _self_signed(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.domain[:64])])
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=False,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today)
            .not_valid_after(today + timedelta(days=365 * YEARS))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(self.domain)]), critical=False)
            .add_extension(usage, critical=True)
            .sign(self._key, SHA256())
        )

    @cached_property
    def _key(self) -> rsa.RSAPrivateKey:
        key = load_pem_private_key((self._folder / KEY).read_bytes(), None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ValueError(f"{self._folder / KEY} is not an RSA key")
        return key

    def certificate(self) -> bytes:
        """The X.509 certificate in PEM form."""
        return (self._folder / CERTIFICATE).read_bytes()

    def sign(self, body: bytes) -> str:
        """The signature of these bytes: base64 of RSA PKCS #1 v1.5 with SHA-256."""
        return base64.b64encode(self._key.sign(body, padding.PKCS1v15(), SHA256())).decode()


def expected_completion(request: DeletionRequest) -> datetime:
    """When a request is expected to be done. For a request that failed or is late, the time moves on with the clock."""
    if request.finished_at is not None and dsr_word(request.status) != "in_progress":
        return request.finished_at
    if request.status in TERMINAL_REQUESTS or request.due_at < datetime.now(UTC):
        return max(request.due_at, datetime.now(UTC) + LATE_EXTENSION)
    return request.due_at


def status_body(request: DeletionRequest, status: str, results_url: str | None) -> JsonObject:
    """The fields that a status answer and a callback share; `status` is one of OpenDSR's."""
    body: JsonObject = {
        "controller_id": str(request.api_key_id),
        "expected_completion_time": timestamp(expected_completion(request)),
        "subject_request_id": str(request.subject_request_id),
        "request_status": status,
    }
    if status == "completed":
        body["results_count"] = request.records_count
        if results_url:
            body["results_url"] = results_url
    return body


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def dumps(body: JsonObject) -> bytes:
    """The bytes of a body, which are sent and signed."""
    return json.dumps(body).encode()
