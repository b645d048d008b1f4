"""Quantised copies of a candidate, made and tested as somebody who deploys them would have them."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import is_gguf_available

from service.domain.quantised import QuantisedFinding
from service.files import file_sha256
from service.gguf import TYPES, NoConverter, NotConverted, gguf_name, write_gguf
from service.low_rank import decode
from service.quantised import SCHEMES
from service.quantised_files import HEADS, MOST_KEPT, WEIGHT, write_quantised, write_rounded
from service.tensor_file import stored_tensors, tensor_files
from service.weight_files import SINGLE, SUFFIX
from worker.engine.errors import UnmergedModule
from worker.engine.experts import separated
from worker.engine.progress import Progress, partial_progress
from worker.steps.loading import stored_dtype
from worker.steps.merging import without_weights
from worker.steps.places import ROWS, Place, stored_places

ERRORS = {"q8_0": 0.02, "q4_k_m": 0.2}  # of a rounded weight, relative to its norm, at most
logger = logging.getLogger(__name__)

# Their code in transformers looks at weights beside their modules' own products, and so cannot load packed ones.
UNLOADED = {"falcon_mamba", "gpt_bigcode", "mamba", "mamba2", "recurrent_gemma"}
Copy: TypeAlias = "tuple[Path, torch.dtype, list[str], dict[str, str]]"
# The folder of the rounded model, its dtype, the modules that stay as they are, and the digests of the copy's files.
Passes = Callable[[Path, torch.dtype, Progress], bool]  # whether the model in a folder, in a dtype, passes the tests


class Unsupported(Exception):
    """There is no such copy of this model."""


def measured_copies(work: Path, schemes: Sequence[str], passes: Passes, progress: Progress) -> list[QuantisedFinding]:
    """Make each quantised copy of a candidate, test it, and remove it: whoever has the model can make it again.

    Args:
        work: The job's working folder: the model is in `candidate/model/`, copies are made in `quantised/`.
        schemes: Names in SCHEMES, or in TYPES of GGUF.
        passes: Tests a model.
        progress: Called with the fraction done, 0..1.

    Returns:
        What became of each.
    """
    source, place = work / "candidate" / "model", work / "quantised"
    copies = []
    for index, scheme in enumerate(schemes):
        part = partial_progress(progress, index / len(schemes), 1 / len(schemes))
        part(0.0)
        status, why, passed, kept, digests = "NOT_RUN", None, None, list[str](), dict[str, str]()
        make = _of_gguf if scheme in TYPES else _of_integers
        try:
            with _empty(place):
                rounded, dtype, kept, digests = make(source, place, scheme, partial_progress(part, 0.0, 0.3))
                passed = passes(rounded, dtype, partial_progress(part, 0.3, 0.7))
            status = "RUN"
        except NoConverter:
            why = "no_converter"
        except (Unsupported, NotConverted) as error:
            logger.warning("there is no copy %s: %s", scheme, type(error.__cause__ or error).__name__)
            why = "unsupported"
        except Exception as error:  # no disk, no memory, or a fault in others' code: the version itself has passed
            logger.warning("the copy %s was not tested: %s", scheme, type(error).__name__)
            why, kept, digests = "failed", [], {}
        copies.append(QuantisedFinding(scheme, status, why, passed, kept, digests))
    return copies


@contextmanager
def _empty(folder: Path) -> Iterator[None]:
    """An empty folder, which is removed afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _of_integers(source: Path, work: Path, scheme: str, progress: Progress) -> Copy:
    """A copy in whole numbers."""
    kept = kept_modules(source, scheme)
    digests = write_quantised(source, work / "copy", scheme, kept, partial_progress(progress, 0.0, 0.5))
    write_rounded(source, work / "copy", work / "model", scheme, partial_progress(progress, 0.5, 0.5))
    return work / "model", stored_dtype(source), kept, digests


def _of_gguf(source: Path, work: Path, kind: str, progress: Progress) -> Copy:
    """A GGUF file. The rounded weights are those that transformers reads from it, in float32."""
    if not is_gguf_available():
        raise NoConverter
    name = gguf_name(kind)
    write_gguf(source, work / name, kind, lambda: progress(0.0))
    progress(0.5)
    try:
        read = AutoModelForCausalLM.from_pretrained(work, gguf_file=name, dtype=torch.float32)
    except (ValueError, KeyError, NotImplementedError, AttributeError) as error:
        raise Unsupported from error  # transformers does not read this family's files
    shutil.copytree(source, work / "model", ignore=shutil.ignore_patterns(f"*{SUFFIX}*"))
    state, names = read.state_dict(), stored_tensors(source)
    if not names.keys() <= state.keys():
        raise Unsupported  # its class names weights otherwise than the files
    save_file({name: state[name].contiguous() for name in names}, work / "model" / SINGLE, {"format": "pt"})
    if not _is_near(source, work / "model", ERRORS[kind]):
        raise Unsupported  # transformers reads other weights from the file than it was made of
    return work / "model", torch.float32, [], {name: file_sha256(work / name)}


def _is_near(source: Path, other: Path, error: float) -> bool:
    """Whether the tensors of two folders, of the same names, are the same but for an error relative to their norms."""
    files = [{name: file for file in tensor_files(folder) for name in file.tensors} for folder in (source, other)]
    for name in files[0]:
        own, read = (decode(file[name].read(name), file[name].tensors[name].dtype) for file in files)
        if own.shape != read.shape or not np.linalg.norm(own - read) <= error * np.linalg.norm(own):
            return False
    return True


def kept_modules(source: Path, scheme: str) -> list[str]:
    """The modules whose weights stay as they are: head, embeddings, and what the scheme does not fit.

    Args:
        source: The model's folder.
        scheme: A name in SCHEMES.

    Returns:
        Their names, sorted.

    Raises:
        Unsupported: Its files keep linear modules in another form than the model has them, or it has experts, or
            transformers loads no such copy of its family.
    """
    model = without_weights(source)
    head = model.get_output_embeddings()
    linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}  # loaders find these
    stored = stored_tensors(source)
    inner = [name for name, module in linear.items() if module is not head]
    try:
        places = stored_places(model, inner)
    except UnmergedModule as error:
        raise Unsupported from error
    plain = all(places[name] == [Place(name, 0, ROWS, False)] and name + WEIGHT in stored for name in inner)
    convolutions = {name + WEIGHT for name, module in model.named_modules() if isinstance(module, nn.Conv1d)}
    experts = separated(model) or any(len(one.shape) > 2 and name not in convolutions for name, one in stored.items())
    if experts or not plain or model.config.model_type in UNLOADED:
        raise Unsupported
    rounded = {name for name in inner if SCHEMES[scheme].fits(stored[name + WEIGHT])}
    matrices = {
        name.removesuffix(WEIGHT) for name, one in stored.items() if name.endswith(WEIGHT) and len(one.shape) == 2
    }
    kept = (matrices | linear.keys()) - rounded
    chosen = [name for name in kept if name not in matrices or SCHEMES[scheme].fits(stored[name + WEIGHT])]
    if not rounded or not kept <= matrices | HEADS or len(chosen) > MOST_KEPT:
        raise Unsupported
    return sorted(kept)
