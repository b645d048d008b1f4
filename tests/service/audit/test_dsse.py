"""Envelopes: ours are read by securesystemslib, theirs by us, and nothing else is."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as TheirEnvelope
from securesystemslib.signer._crypto_signer import CryptoSigner
from securesystemslib.signer._key import SSlibKey

from service.audit.dsse import Envelope, NotAnEnvelope, keyid, sign, signature_is_valid

KEYS = [Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())]
KIND = "application/x"


@settings(max_examples=20)
@given(st.binary(max_size=200), st.sampled_from(KEYS))
def test_both_ways(payload, key):
    """The same bytes are signed, for both kinds of key."""
    ours = json.loads(sign(payload, KIND, [key]))
    theirs = TheirEnvelope.from_dict(json.loads(json.dumps(ours)))
    assert theirs.verify([SSlibKey.from_crypto(key.public_key(), keyid=keyid(key.public_key()))], 1)
    made = TheirEnvelope(payload, KIND, {})
    made.sign(CryptoSigner(key))
    read = Envelope.from_json(made.to_dict())
    assert (read.payload, read.payload_type) == (payload, KIND)
    assert signature_is_valid(key.public_key(), read.signatures[0].sig, read.signed)
    assert not signature_is_valid(key.public_key(), read.signatures[0].sig, read.signed + b"x")
    assert not signature_is_valid(KEYS[0].public_key(), b"", read.signed)


def test_the_bytes_that_are_signed():
    """The specification's own example."""
    envelope = Envelope(b"hello world", "http://example.com/HelloWorld", [])
    assert envelope.signed == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.pop("payload"),
        lambda e: e.pop("payloadType"),
        lambda e: e.pop("signatures"),
        lambda e: e.update(payload="x"),
        lambda e: e.update(payload=7),
        lambda e: e.update(signatures=[7]),
        lambda e: e["signatures"][0].pop("sig"),
        lambda e: e["signatures"][0].update(sig="@@@@"),
        lambda e: e.update(payload=e["payload"] + "\n"),
    ],
)
def test_what_is_no_envelope(change):
    """A part is missing, or is not base64 in its one form."""
    content = json.loads(sign(b"a payload", KIND, KEYS))
    assert [s.keyid for s in Envelope.from_json(content).signatures] == [keyid(k.public_key()) for k in KEYS]
    assert base64.b64decode(content["payload"]) == b"a payload"
    change(content)
    with pytest.raises(NotAnEnvelope):
        Envelope.from_json(content)
