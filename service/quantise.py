"""quantise: make a quantised copy of a release's model, and check it against the certificate.

Only files are needed: no service, no network, and no torch. The converter of a GGUF file needs torch.
"""

import shutil
from pathlib import Path
from tempfile import mkdtemp

from service.audit.manifest import MODEL_FOLDER
from service.audit.predicate import Quantised
from service.audit.verification import ExitCode, VerificationError
from service.audit.verify import Verified, verify
from service.domain.errors import ClientError
from service.files import file_sha256
from service.gguf import TYPES, NoConverter, NotConverted, gguf_name, write_gguf
from service.quantised_files import write_quantised
from service.weight_files import UnreadableWeights


def quantise_release(release: Path, target: Path, scheme: str, trust: Path | None = None) -> Verified:
    """Make `target` the quantised copy that the certificate lists with PASS, or leave nothing.

    A run that was killed leaves a folder `.NAME....` beside it.

    Args:
        release: A release folder.
        target: A folder that does not exist yet, in one that does.
        scheme: The copy's scheme, as the certificate lists it.
        trust: The issuer's `trust.json`; without it the one in `release` is used, which shows integrity alone.

    Returns:
        What `verify` says of the release.

    Raises:
        ClientError: `target` exists, or cannot be made, or a program of llama.cpp is missing.
        VerificationError: The release does not hold, or the certificate lists no such copy with PASS, or the copy is
            another one.
        OSError: A file cannot be read or written.
    """
    target = target.absolute()
    if target.exists() or not target.parent.is_dir() or release.resolve() in target.resolve().parents:
        raise ClientError(f"{target}: a new folder in an existing one, outside of the release, is needed")
    verified = verify(release, trust)
    listed = _passed(verified, scheme)
    staged = Path(mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        made = _make(release / MODEL_FOLDER, staged / "copy", scheme, listed["kept"])
        expected = {file["name"]: file["digest"]["sha256"] for file in listed["files"]}
        if other := next((name for name in {**made, **expected} if made.get(name) != expected.get(name)), None):
            by = "; another build of llama.cpp may make another file" if scheme in TYPES else ""
            raise VerificationError(ExitCode.ARTEFACT_MISMATCH, f"{other} is not the certified file{by}")
        (staged / "copy").rename(target)
    except UnreadableWeights as error:
        raise VerificationError(ExitCode.ARTEFACT_MISMATCH, f"the model cannot be rounded so: {error}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return verified


def _passed(verified: Verified, scheme: str) -> Quantised:
    """The certificate's line on a copy that passed.

    Raises:
        VerificationError: There is none.
    """
    copies = verified.statement["predicate"]["verification"].get("quantised", [])
    listed = next((copy for copy in copies if copy["scheme"] == scheme), None)
    if listed is None:
        raise VerificationError(ExitCode.INCOMPLETE, f"the certificate lists no copy {scheme}")
    if listed["result"] != "PASS":
        reason = "failed its tests" if listed["result"] else f"was not tested ({listed['why']})"
        raise VerificationError(ExitCode.POLICY_FAILURE, f"the copy {scheme} {reason}")
    return listed


def _make(model: Path, target: Path, scheme: str, kept: list[str]) -> dict[str, str]:
    """Make a copy; returns path -> sha256 of the files that are no copies of the model's."""
    if scheme not in TYPES:
        return write_quantised(model, target, scheme, kept)
    target.mkdir()
    file = target / gguf_name(scheme)
    try:
        write_gguf(model, file, scheme)
    except NoConverter as error:
        raise ClientError("convert_hf_to_gguf.py and llama-quantize of llama.cpp have to be on the PATH") from error
    except NotConverted as error:
        raise ClientError(str(error)) from error
    return {file.name: file_sha256(file)}
