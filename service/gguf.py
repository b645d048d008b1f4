"""GGUF files of a model: made by the converter and the quantiser of llama.cpp, which have to be on the PATH.

The same build of llama.cpp on the same kind of processor makes the same file of the same model.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from service.files import link_or_copy
from service.tensor_file import stored_tensors

CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
QUANTISER = "llama-quantize"
TYPES = {"q8_0": "Q8_0", "q4_k_m": "Q4_K_M"}  # policy's name -> llama.cpp's
PRECISIONS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}  # safetensors' dtype -> the converter's
CONFIGURATIONS = ("config.json", "tokenizer_config.json")  # where a model names code of its own
ALIVE = 60.0  # seconds between two signs of life
SHOWN = 2000  # bytes of what a program that failed printed last


class NoConverter(Exception):
    """A program of llama.cpp is not on the PATH."""


class NotConverted(Exception):
    """A program of llama.cpp failed: it does not know the model, most likely. Or the model has code of its own."""


def gguf_name(kind: str) -> str:
    """The name of a GGUF file of a model."""
    return f"model-{kind}.gguf"


def write_gguf(source: Path, target: Path, kind: str, alive: Callable[[], None] = lambda: None) -> None:
    """Convert a model to a quantised GGUF file.

    The model card is left out: the converter takes names from it, and it is written after the model is tested.

    Args:
        source: The model's folder.
        target: The file to make.
        kind: A name in TYPES.
        alive: Called now and then while a program runs.

    Raises:
        NoConverter: A program is missing.
        NotConverted: A program failed, or the model names code, which the converter might run.
    """
    converter, quantiser = next(filter(None, map(shutil.which, CONVERTERS)), None), shutil.which(QUANTISER)
    if converter is None or (kind != "q8_0" and quantiser is None):
        raise NoConverter
    with TemporaryDirectory(dir=target.parent) as folder:
        model, whole = Path(folder, "model"), Path(folder, "whole.gguf")
        model.mkdir()
        for file in source.iterdir():
            if file.is_file() and file.name != "README.md":
                link_or_copy(file, model / file.name)
        if any(model.glob("*.py")) or any(map(_names_code, (model / name for name in CONFIGURATIONS))):
            raise NotConverted("the model names code of its own")
        dtypes = {one.dtype for one in stored_tensors(source).values()}
        precision = PRECISIONS[dtypes.pop()] if len(dtypes) == 1 and dtypes <= PRECISIONS.keys() else "f32"
        if kind == "q8_0":
            _run([converter, str(model), "--outfile", str(target), "--outtype", "q8_0"], alive)
            return
        _run([converter, str(model), "--outfile", str(whole), "--outtype", precision], alive)
        _run([str(quantiser), str(whole), str(target), TYPES[kind]], alive)


def _names_code(path: Path) -> bool:
    """Whether a configuration names code."""
    return path.exists() and "auto_map" in json.loads(path.read_bytes())


def _run(command: list[str], alive: Callable[[], None]) -> None:
    """Run a program.

    Raises:
        NoConverter: It does not start.
        NotConverted: It failed; the message has what it printed last.
        ChildProcessError: It was killed.
    """
    with TemporaryFile() as output:
        try:
            environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        except OSError as error:  # it is there, and may not be started
            raise NoConverter from error
        while True:
            try:
                status = process.wait(ALIVE)
                break
            except subprocess.TimeoutExpired:
                alive()
        if status < 0:
            raise ChildProcessError(f"{Path(command[0]).name} was killed")
        if status:
            output.seek(max(0, output.tell() - SHOWN))
            raise NotConverted(f"{Path(command[0]).name} failed: {output.read().decode(errors='replace')}")
