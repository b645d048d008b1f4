"""A witness (C2SP tlog-witness) that checks what it cosigns, for tests: its own code, and no part of the service's."""

import base64
import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

RAW = (Encoding.Raw, PublicFormat.Raw)


def node(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node (RFC 9162, 2.1.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def goes_on(older: int, newer: int, old_root: bytes, new_root: bytes, proof: list[bytes]) -> bool:
    """Whether a consistency proof holds, by the algorithm of RFC 9162, 2.1.4.2."""
    if older == 0 or older == newer:
        return not proof and (older == 0 or old_root == new_root)
    path = [old_root, *proof] if older & (older - 1) == 0 else list(proof)
    if not path:
        return False
    at, last = older - 1, newer - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    first = second = path[0]
    for hashed in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            first, second = node(hashed, first), node(hashed, second)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            second = node(second, hashed)
        at, last = at >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root


class Witness:
    """A witness on a port of this machine, which knows one log by its key and remembers one checkpoint."""

    def __init__(self, log_key: Ed25519PublicKey, name: str = "witness.example") -> None:
        """Serve in a thread."""
        self.name, self._key, self._log_key = name, Ed25519PrivateKey.generate(), log_key
        self.size, self.root, self.asked = 0, b"", list[int]()
        witness = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # http.server's name
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                status, answer = witness.add(body) if self.path == "/add-checkpoint" else (404, "")
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer.encode())))
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def _key_id(self) -> bytes:
        public = self._key.public_key().public_bytes(*RAW)
        return hashlib.sha256(self.name.encode() + b"\n\x04" + public).digest()[:4]

    @property
    def vkey(self) -> str:
        """The verifier key that it gives out."""
        public = base64.b64encode(b"\x04" + self._key.public_key().public_bytes(*RAW)).decode()
        return f"{self.name}+{self._key_id().hex()}+{public}"

    def add(self, body: str) -> tuple[int, str]:
        """Status and body of the answer to `add-checkpoint`."""
        head, note = body.split("\n\n", 1)
        first, *proof = head.split("\n")
        older = int(first.removeprefix("old "))
        self.asked.append(older)
        text, signature = note.split("\n\n")
        origin, size, root = text.split("\n")
        try:
            self._log_key.verify(base64.b64decode(signature.split()[2])[4:], f"{text}\n".encode())
        except InvalidSignature:
            return 403, ""
        if older != self.size:
            return 409, f"{self.size}\n"
        if not goes_on(older, int(size), self.root, base64.b64decode(root), [base64.b64decode(h) for h in proof]):
            return 422, ""
        assert origin
        self.size, self.root = int(size), base64.b64decode(root)
        return 200, self.cosigned(f"{text}\n", int(time.time()))

    def cosigned(self, text: str, at: int) -> str:
        """Its signature line under the text of a checkpoint."""
        signature = self._key.sign(f"cosignature/v1\ntime {at}\n{text}".encode())
        blob = base64.b64encode(self._key_id() + at.to_bytes(8, "big") + signature).decode()
        return f"\N{EM DASH} {self.name} {blob}\n"

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
