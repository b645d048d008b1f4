"""DataGrail's webhook signature: `X-Webhook-Signature` is base64 of HMAC-SHA256 over timestamp, colon and body."""

import base64
import hashlib
import hmac
import time
from datetime import datetime

TOLERANCE_SECONDS = 300
SIGNATURE, TIMESTAMP = "X-Webhook-Signature", "X-Webhook-Timestamp"


def signature_headers(secret: str, at: datetime, body: bytes) -> dict[str, str]:
    """The headers of a signed body."""
    timestamp = str(int(at.timestamp()))
    return {"content-type": "application/json", TIMESTAMP: timestamp, SIGNATURE: _signature(secret, timestamp, body)}


def is_signed(secret: str, timestamp: str, signature: str, body: bytes) -> bool:
    """Whether a holder of the secret signed the body, at most `TOLERANCE_SECONDS` ago.

    The signature may begin with `v1=`.
    """
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 12):
        return False
    if abs(time.time() - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    return hmac.compare_digest(_signature(secret, timestamp, body).encode(), signature.removeprefix("v1=").encode())


def _signature(secret: str, timestamp: str, body: bytes) -> str:
    signed = f"{timestamp}:".encode() + body
    return base64.b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256)).decode()
