"""GGUF files of a model: made by the converter and the quantiser of llama.cpp, which have to be on the PATH.

The same release of llama.cpp makes the same file of the same model.
"""

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from service.tensor_file import TensorFile
from service.weight_files import loaded_weights

CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
QUANTISER = "llama-quantize"
TYPES = {"q8_0": "Q8_0", "q4_k_m": "Q4_K_M"}  # policy's name -> llama.cpp's
PRECISIONS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}  # safetensors' dtype -> the converter's


class NoConverter(Exception):
    """A program of llama.cpp is not on the PATH."""


class NotConverted(Exception):
    """A program of llama.cpp failed: it does not know the model, most likely."""


def gguf_name(kind: str) -> str:
    """The name of a GGUF file of a model."""
    return f"model-{kind}.gguf"


def write_gguf(source: Path, target: Path, kind: str) -> None:
    """Convert a model to a quantised GGUF file.

    The model card is left out: the converter takes names from it, and it is written after the model is tested.

    Args:
        source: The model's folder.
        target: The file to make.
        kind: A name in TYPES.

    Raises:
        NoConverter: A program is missing.
        NotConverted: A program failed.
    """
    programs = (next(filter(None, map(shutil.which, CONVERTERS)), None), shutil.which(QUANTISER))
    if programs[0] is None or (kind != "q8_0" and programs[1] is None):
        raise NoConverter
    with TemporaryDirectory(dir=target.parent) as folder:
        model, whole = Path(folder, "model"), Path(folder, "whole.gguf")
        model.mkdir()
        for file in source.iterdir():
            if file.name != "README.md":
                (model / file.name).symlink_to(file.absolute())
        dtypes = {one.dtype for name in loaded_weights(source) for one in TensorFile(source / name).tensors.values()}
        precision = PRECISIONS[dtypes.pop()] if len(dtypes) == 1 and dtypes <= PRECISIONS.keys() else "f32"
        if kind == "q8_0":
            _run(programs[0], str(model), "--outfile", str(target), "--outtype", "q8_0")
            return
        _run(programs[0], str(model), "--outfile", str(whole), "--outtype", precision)
        _run(str(programs[1]), str(whole), str(target), TYPES[kind])


def _run(*command: str) -> None:
    """Run a program; what it prints is dropped."""
    try:
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotConverted(Path(command[0]).name) from error
