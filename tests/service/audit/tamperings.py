"""Ways to tamper with a release, and what the verifier must say of each: name -> (change, exit code, reason)."""

import base64
from pathlib import Path

from service.audit.merkle import node_hash
from service.audit.verification import CERTIFICATE, ExitCode
from service.audit.verify import MODEL_SIGNATURE, PROOF
from tests.service.audit.releases import EARLIER, LATER, mark, rewrite


def repay(envelope: dict, change) -> None:
    """Change the payload's bytes and leave the signature."""
    envelope["payload"] = base64.b64encode(change(base64.b64decode(envelope["payload"]))).decode()


def flip(path: Path, at: int = 500) -> None:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


def cut_path(path: Path) -> None:
    """Leave the last hash of the inclusion proof out."""
    head, _, note = path.read_text().partition("\n\n")
    path.write_text("\n".join(head.split("\n")[:-1]) + "\n\n" + note)


def node_for_leaf(path: Path) -> None:
    """Offer the node above the entry as if it were an entry."""
    lines = path.read_text().split("\n")
    node = node_hash(b"\0" * 32, base64.b64decode(lines[3]))
    lines[1] = f"extra {base64.b64encode(node).decode()}"
    path.write_text("\n".join(lines))


def swap(release: Path) -> None:
    """Two files change their names."""
    a, b = release / "model/config.json", release / "model/model.safetensors"
    a.rename(release / "x")
    b.rename(a)
    (release / "x").rename(b)


TAMPERINGS = {
    "flip a byte": (
        lambda r: flip(r / "model/model.safetensors"),
        ExitCode.ARTEFACT_MISMATCH,
        "model/model.safetensors",
    ),
    "flip the last byte": (
        lambda r: flip(r / "model/model.safetensors", -1),
        ExitCode.ARTEFACT_MISMATCH,
        "model/model.safetensors",
    ),
    "remove a file": (
        lambda r: (r / "model/config.json").unlink(),
        ExitCode.ARTEFACT_MISMATCH,
        "config.json is missing",
    ),
    "rename a file": (
        lambda r: (r / "model/config.json").rename(r / "model/c.json"),
        ExitCode.ARTEFACT_MISMATCH,
        "model/c.json",
    ),
    "swap two files": (swap, ExitCode.ARTEFACT_MISMATCH, "model/config.json"),
    "add a file": (lambda r: (r / "model/x.py").write_text(""), ExitCode.ARTEFACT_MISMATCH, "x.py is not in the"),
    "add a hidden file": (
        lambda r: [(r / ".git").mkdir(), (r / ".git/x").write_text("")],
        ExitCode.ARTEFACT_MISMATCH,
        ".git/x",
    ),
    "add a hidden file to the model": (
        lambda r: [(r / "model/.git").mkdir(), (r / "model/.git/x").write_text("")],
        ExitCode.ARTEFACT_MISMATCH,
        ".git/x",
    ),
    "change trust.json by a space": (
        lambda r: (r / "trust.json").write_bytes((r / "trust.json").read_bytes() + b" "),
        ExitCode.ARTEFACT_MISMATCH,
        "trust.json",
    ),
    "add a link": (lambda r: (r / "model/link").symlink_to("/etc/passwd"), ExitCode.ARTEFACT_MISMATCH, "model/link"),
    "swap a file for a link": (
        lambda r: [(r / "model/config.json").unlink(), (r / "model/config.json").symlink_to(r / "trust.json")],
        ExitCode.ARTEFACT_MISMATCH,
        "neither",
    ),
    "swap a folder for a link": (
        lambda r: [(r / "model").rename(r.parent / "m"), (r / "model").symlink_to(r.parent / "m")],
        ExitCode.ARTEFACT_MISMATCH,
        "neither",
    ),
    "certificate behind a link": (
        lambda r: [(r / CERTIFICATE).rename(r.parent / "c"), (r / CERTIFICATE).symlink_to(r.parent / "c")],
        ExitCode.INCOMPLETE,
        CERTIFICATE,
    ),
    "PASS turned to FAIL": (
        lambda r: rewrite(r / CERTIFICATE, lambda e: repay(e, lambda d: d.replace(b'"PASS"', b'"FAIL"'))),
        ExitCode.BAD_SIGNATURE,
        "signature",
    ),
    "another payload type": (
        lambda r: rewrite(r / CERTIFICATE, lambda e: e.update(payloadType="text/plain")),
        ExitCode.BAD_SIGNATURE,
        "type",
    ),
    "no signature": (
        lambda r: rewrite(r / CERTIFICATE, lambda e: e.update(signatures=[])),
        ExitCode.UNTRUSTED_KEY,
        "nobody has signed",
    ),
    "one key twice": (
        lambda r: rewrite(r / CERTIFICATE, lambda e: e["signatures"].append(e["signatures"][0])),
        ExitCode.UNTRUSTED_KEY,
        "twice",
    ),
    "signed by the log's key": (
        lambda r: rewrite(
            r / "trust.json",
            lambda t: [
                k.update(role={"log": "certificate", "certificate": "log"}.get(k["role"], k["role"])) for k in t["keys"]
            ],
        ),
        ExitCode.UNTRUSTED_KEY,
        "unknown",
    ),
    "revoked key": (lambda r: mark(r, "certificate", revoked_at=LATER), ExitCode.UNTRUSTED_KEY, "revoked"),
    "expired key": (lambda r: mark(r, "certificate", valid_until=EARLIER), ExitCode.UNTRUSTED_KEY, "expired"),
    "no certificate": (lambda r: (r / CERTIFICATE).unlink(), ExitCode.INCOMPLETE, f"{CERTIFICATE} is missing"),
    "no trust": (lambda r: (r / "trust.json").unlink(), ExitCode.INCOMPLETE, "trust.json"),
    "no word of how many must sign": (
        lambda r: rewrite(r / "trust.json", lambda t: t.pop("certificate_keys_needed")),
        ExitCode.INCOMPLETE,
        "trust.json",
    ),
    "no keys in trust": (lambda r: (r / "trust.json").write_text('{"keys": []}'), ExitCode.INCOMPLETE, "trust.json"),
    "nonsense in trust": (
        lambda r: (r / "trust.json").write_text('{"keys": ["x"]}'),
        ExitCode.INCOMPLETE,
        "trust.json",
    ),
    "no model signature": (lambda r: (r / MODEL_SIGNATURE).unlink(), ExitCode.ARTEFACT_MISMATCH, MODEL_SIGNATURE),
    "no proof": (lambda r: (r / PROOF).unlink(), ExitCode.INCOMPLETE, PROOF),
    "another index": (
        lambda r: (r / PROOF).write_text((r / PROOF).read_text().replace("index 4", "index 3")),
        ExitCode.LOG_FAILURE,
        "log",
    ),
    "a cut path": (lambda r: cut_path(r / PROOF), ExitCode.LOG_FAILURE, "too short"),
    "a node for a leaf": (lambda r: node_for_leaf(r / PROOF), ExitCode.LOG_FAILURE, "not in the log"),
    "another checkpoint": (
        lambda r: (r / PROOF).write_text((r / PROOF).read_text().replace("\n6\n", "\n7\n")),
        ExitCode.LOG_FAILURE,
        "signature",
    ),
    "nonsense for a proof": (lambda r: (r / PROOF).write_text("nonsense"), ExitCode.LOG_FAILURE, "not a log proof"),
    "bytes for a proof": (lambda r: (r / PROOF).write_bytes(b"\xff"), ExitCode.LOG_FAILURE, "not a log proof"),
    "not an envelope": (lambda r: (r / CERTIFICATE).write_text("[]"), ExitCode.MALFORMED, "envelope"),
    "nonsense for an envelope": (lambda r: (r / CERTIFICATE).write_text("nonsense"), ExitCode.MALFORMED, "envelope"),
}
