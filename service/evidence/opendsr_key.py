"""The processor's RSA key of OpenDSR and its X.509 certificate, in the keys folder.

`unlearnd keys init` creates a self-signed certificate, which an operator replaces by one from a trusted authority.
"""

import base64
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from service.files import write_private

KEY, CERTIFICATE = "opendsr.pem", "opendsr.crt"
KEY_BITS, YEARS = 3072, 10


class OpenDsrKey:
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
