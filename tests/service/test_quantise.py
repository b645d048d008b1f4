"""`unlearnd quantise`: a copy is the certified one, or there is none."""

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from service.audit.verification import ExitCode, VerificationError
from service.audit.verify import MODEL_SIGNATURE
from service.cli import app
from service.domain.errors import ClientError
from service.files import file_sha256
from service.gguf import NotConverted, gguf_name, write_gguf
from service.quantise import quantise_release
from service.quantised_files import write_quantised
from tests import support
from tests.issuer import POLICY, REPORT, Issuer
from worker.steps.sandbox import child_environment, host_sandbox

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


def line(scheme: str, passed: bool | None, digests: dict[str, str] | None, kept=()) -> dict:
    """What a report says of a copy."""
    status, why = ("RUN", None) if passed is not None else ("NOT_RUN", "no_converter")
    return {"scheme": scheme, "status": status, "why": why, "passed": passed, "kept": list(kept), "digests": digests}


@pytest.fixture
def issued(tmp_path, monkeypatch):
    """A function that makes a release whose certificate says this of copies; they are of a real model."""
    issuer = Issuer(tmp_path / "keys")
    folder = tmp_path / "release"

    def issue(*copies: dict, model=None):
        if model is None:
            support.random_model("llama", gain=1.0).save_pretrained(folder / "model")
        else:
            shutil.copytree(model, folder / "model")
        (folder / "model" / "README.md").write_text("a card")
        (folder / "trust.json").write_bytes(issuer.keyring.trust())
        issuer.keyring.sign_model(folder / "model", folder / MODEL_SIGNATURE)
        made = [
            copy
            | {"digests": write_quantised(folder / "model", tmp_path / copy["scheme"], copy["scheme"], copy["kept"])}
            if copy["digests"] is None
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
    with pytest.raises(VerificationError, match="is not the certified file") as refused:
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
    assert not (tmp_path / "out").exists()


def test_a_copy_of_which_a_part_is_certified_is_refused(issued, tmp_path):
    """A certificate that lists the configuration alone says nothing of the weights."""
    issued(line("int8", True, None, KEPT))
    config = file_sha256(tmp_path / "int8" / "config.json")
    shutil.rmtree(tmp_path / "release")
    release = issued(line("int8", True, {"config.json": config}, KEPT))
    with pytest.raises(VerificationError, match=r"model\.safetensors is not"):
        quantise_release(release, tmp_path / "out", "int8")


def test_a_model_that_cannot_be_rounded_so_is_no_copy(issued, tmp_path):
    """`kept` may leave out what does not fit: that is said as everything else is."""
    release = issued(line("int4", True, {"model.safetensors": "0" * 64}, ["lm_head"]))
    weights = release / "model" / "model.safetensors"
    save_file(load_file(weights) | {"odd.weight": torch.ones(2, 33)}, weights, {"format": "pt"})
    (release / "certificate.dsse.json").unlink()
    shutil.move(release / "model", tmp_path / "model")
    shutil.rmtree(release)
    release = issued(line("int4", True, {"model.safetensors": "0" * 64}, ["lm_head"]), model=tmp_path / "model")
    with pytest.raises(VerificationError, match=r"odd\.weight") as refused:
        quantise_release(release, tmp_path / "out", "int4")
    assert refused.value.code == ExitCode.ARTEFACT_MISMATCH


@pytest.mark.parametrize("place", ["release/model/out", "release/out"])
def test_no_copy_is_made_in_its_release(issued, tmp_path, place):
    """It would be a part of itself, or a file that the certificate does not list."""
    issued(line("int8", True, None, KEPT))
    with pytest.raises(ClientError, match="outside of the release"):
        quantise_release(tmp_path / "release", tmp_path / place, "int8")


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


def test_a_model_with_code_of_its_own_is_not_converted(programs, tmp_path):
    """The converter might run it, and the release may be anybody's."""
    support.random_model("llama").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "evil.Evil"}}')
    with pytest.raises(NotConverted, match="code of its own"):
        write_gguf(tmp_path / "model", tmp_path / "out.gguf", "q8_0")
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "model" / "evil.py").write_text("import os")
    with pytest.raises(NotConverted, match="code of its own"):
        write_gguf(tmp_path / "model", tmp_path / "out.gguf", "q8_0")


@pytest.mark.skipif(bool(host_sandbox().missing), reason="this host confines no child in full")
def test_a_confined_child_makes_a_gguf_file(programs, tmp_path):
    """As a compute worker does: the model is in its working folder, and the programs are where it may read."""
    work = tmp_path / "work"
    support.random_model("llama").save_pretrained(work / "candidate" / "model")
    (work / "quantised").mkdir()
    code = f"""
from pathlib import Path
from service.gguf import write_gguf
work = Path({str(work)!r})
write_gguf(work / "candidate" / "model", work / "quantised" / "out.gguf", "q4_k_m")
"""
    command = host_sandbox().command([sys.executable, "-c", code], readable=[programs], writable=[work])
    path = f"{programs}:{os.defpath}:/usr/sbin"
    subprocess.run(command, check=True, env=child_environment({**os.environ, "PATH": path}, work))
    assert (work / "quantised" / "out.gguf").read_text().startswith("Q4_K_M of f32 config.json")


def test_the_command_says_what_it_made(issued, tmp_path):
    """Its exit codes are those of `verify`."""
    release = issued(line("int8", True, None, KEPT), line("int4", False, None, KEPT))
    run = CliRunner().invoke(app, ["quantise", str(release), str(tmp_path / "out"), "--scheme", "int8", "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["scheme"] == "int8"
    run = CliRunner().invoke(app, ["quantise", str(release), str(tmp_path / "no"), "--scheme", "int4"])
    assert run.exit_code == ExitCode.POLICY_FAILURE
    run = CliRunner().invoke(app, ["quantise", str(release), str(tmp_path / "no"), "--scheme", "int-4"])
    assert (run.exit_code, "one of int8, int4" in run.output) == (2, True)
