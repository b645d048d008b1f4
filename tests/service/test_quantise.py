"""`unlearnd quantise`: a copy is the certified one, or there is none."""

import json
import stat
import sys

import pytest
from typer.testing import CliRunner

from service.audit.verification import ExitCode, VerificationError
from service.audit.verify import MODEL_SIGNATURE
from service.cli import app
from service.domain.errors import ClientError
from service.files import file_sha256
from service.gguf import gguf_name
from service.quantise import quantise_release
from service.quantised_files import write_quantised
from tests import support
from tests.issuer import POLICY, REPORT, Issuer

KEPT = ["lm_head", "model.embed_tokens"]
CONVERTER = """#!{python}
import hashlib, pathlib, sys
model, out, kind = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[3]), sys.argv[5]
names = sorted(path.name for path in model.iterdir())
out.write_text(" ".join([kind, *names, hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()]))
"""
QUANTISER = """#!{python}
import pathlib, sys
pathlib.Path(sys.argv[2]).write_text(sys.argv[3] + " of " + pathlib.Path(sys.argv[1]).read_text())
"""


def line(scheme: str, passed: bool | None, files: dict[str, str], kept=()) -> dict:
    """What a report says of a copy."""
    status, why = ("RUN", None) if passed is not None else ("NOT_RUN", "no_converter")
    return {"scheme": scheme, "status": status, "why": why, "passed": passed, "kept": list(kept), "files": files}


@pytest.fixture
def issued(tmp_path, monkeypatch):
    """A function that makes a release whose certificate says this of copies; they are of a real model."""
    issuer = Issuer(tmp_path / "keys")
    folder = tmp_path / "release"

    def issue(*copies: dict):
        support.random_model("llama", gain=1.0).save_pretrained(folder / "model")
        (folder / "model" / "README.md").write_text("a card")
        (folder / "trust.json").write_bytes(issuer.keyring.trust())
        issuer.keyring.sign_model(folder / "model", folder / MODEL_SIGNATURE)
        made = [
            copy | {"files": write_quantised(folder / "model", tmp_path / copy["scheme"], copy["scheme"], copy["kept"])}
            if copy["files"] is None
            else copy
            for copy in copies
        ]
        schemes = [copy["scheme"] for copy in copies]
        policy = POLICY | {"quantise": schemes}
        monkeypatch.setattr("tests.issuer.POLICY", policy)  # what the log holds before the run
        return issuer.certify_folder(folder, report=REPORT | {"quantised": made}, parameters=policy)

    return issue


def test_a_copy_that_passed_is_made_and_verified(issued, tmp_path):
    """To the bit, from the release alone; one that failed, was not tested or is not listed, is not made."""
    release = issued(line("int8", True, None, KEPT), line("int4", False, None, KEPT), line("q8_0", None, {}))
    quantise_release(release, tmp_path / "out", "int8")
    for name, digest in write_quantised(release / "model", tmp_path / "again", "int8", KEPT).items():
        assert file_sha256(tmp_path / "out" / name) == digest
    for scheme, code, reason in (
        ("int4", ExitCode.POLICY_FAILURE, "failed its tests"),
        ("q8_0", ExitCode.POLICY_FAILURE, "no_converter"),
        ("q4_k_m", ExitCode.INCOMPLETE, "lists no copy"),
    ):
        with pytest.raises(VerificationError, match=reason) as refused:
            quantise_release(release, tmp_path / "none", scheme)
        assert refused.value.code == code
    assert not [path for path in tmp_path.iterdir() if path.name == "none" or path.name.startswith(".")]
    with pytest.raises(ClientError, match="new folder"):
        quantise_release(release, tmp_path / "out", "int8")


def test_a_copy_unlike_the_certified_one_leaves_nothing(issued, tmp_path):
    """The certificate's digest may be that of another model: whoever computed it lied, or has another program."""
    release = issued(line("int8", True, {"model.safetensors": "0" * 64}, KEPT))
    with pytest.raises(VerificationError, match=r"model\.safetensors is not the certified file") as refused:
        quantise_release(release, tmp_path / "out", "int8")
    assert refused.value.code == ExitCode.ARTEFACT_MISMATCH
    assert not [path for path in tmp_path.iterdir() if path.name == "out" or path.name.startswith(".")]


def test_a_release_that_does_not_hold_has_no_copies(issued, tmp_path):
    """The model is verified before it is rounded."""
    release = issued(line("int8", True, None, KEPT))
    weights = release / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(VerificationError):
        quantise_release(release, tmp_path / "out", "int8")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Programs with llama.cpp's names and arguments on the PATH: they write what they were given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, code in (("convert_hf_to_gguf.py", CONVERTER), ("llama-quantize", QUANTISER)):
        (folder / name).write_text(code.format(python=sys.executable))
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_a_gguf_file_is_made_by_the_programs_of_llama_cpp(issued, programs, tmp_path):
    """From the model without its card, in the precision of its weights; without the programs it is said."""
    release = issued(*(line(kind, True, {gguf_name(kind): "0" * 64}) for kind in ("q4_k_m", "q8_0")))
    weights = file_sha256(release / "model" / "model.safetensors")
    given = f"config.json generation_config.json model.safetensors {weights}"
    expected = {"q8_0": f"q8_0 {given}", "q4_k_m": f"Q4_K_M of f32 {given}"}
    for kind, content in expected.items():
        (tmp_path / kind).write_text(content)
    release = issued(*(line(kind, True, {gguf_name(kind): file_sha256(tmp_path / kind)}) for kind in sorted(expected)))
    for kind, content in expected.items():
        quantise_release(release, tmp_path / f"out-{kind}", kind)
        assert [path.name for path in (tmp_path / f"out-{kind}").iterdir()] == [gguf_name(kind)]
        assert (tmp_path / f"out-{kind}" / gguf_name(kind)).read_text() == content
    (programs / "llama-quantize").write_text("#!/bin/false")
    with pytest.raises(ClientError, match="llama-quantize failed"):
        quantise_release(release, tmp_path / "failed", "q4_k_m")
    (programs / "llama-quantize").unlink()
    with pytest.raises(ClientError, match="on the PATH"):
        quantise_release(release, tmp_path / "failed", "q4_k_m")
    assert not (tmp_path / "failed").exists()


def test_the_command_says_what_it_made(issued, tmp_path):
    """Its exit codes are those of `verify`."""
    release = issued(line("int8", True, None, KEPT), line("int4", False, None, KEPT))
    run = CliRunner().invoke(app, ["quantise", str(release), str(tmp_path / "out"), "--scheme", "int8", "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["scheme"] == "int8"
    run = CliRunner().invoke(app, ["quantise", str(release), str(tmp_path / "no"), "--scheme", "int4"])
    assert run.exit_code == ExitCode.POLICY_FAILURE
