"""Quantised copies of a candidate, made and tested as somebody who deploys them would have them."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import is_gguf_available

from service.domain.quantised import QuantisedFinding
from service.files import file_sha256
from service.gguf import TYPES, NoConverter, NotConverted, gguf_name, write_gguf
from service.quantised import SCHEMES
from service.quantised_files import HEADS, WEIGHT, write_quantised, write_rounded
from service.tensor_file import TensorFile
from service.weight_files import SUFFIX, loaded_weights
from worker.engine.errors import UnmergedModule
from worker.engine.experts import separate_experts, separated
from worker.engine.progress import Progress, partial_progress
from worker.steps.loading import stored_dtype
from worker.steps.places import ROWS, Place, stored_places

# Their code in transformers looks at weights beside their modules' own products, and so cannot load packed ones.
UNLOADED = {"falcon_mamba", "gpt_bigcode", "mamba", "mamba2", "recurrent_gemma"}
Passes = Callable[[Path, torch.dtype, Progress], bool]  # whether the model in a folder, in a dtype, passes the tests


class Unsupported(Exception):
    """There is no such copy of this model."""


def measured_copies(
    source: Path, work: Path, schemes: Sequence[str], passes: Passes, progress: Progress
) -> list[QuantisedFinding]:
    """Make each quantised copy of a model, test it, and remove it: whoever has the model can make it again.

    Args:
        source: The model's folder.
        work: A folder for the copies, which must not be there, or be left of an earlier attempt.
        schemes: Names in SCHEMES, or in TYPES of GGUF.
        passes: Tests a model.
        progress: Called with the fraction done, 0..1.

    Returns:
        What became of each.
    """
    copies = []
    for index, scheme in enumerate(schemes):
        part = partial_progress(progress, index / len(schemes), 1 / len(schemes))
        part(0.0)
        with _empty(work):
            try:
                make = _of_gguf if scheme in TYPES else _of_integers
                rounded, dtype, kept, files = make(source, work, scheme)
                passed = passes(rounded, dtype, part)
                copies.append(QuantisedFinding(scheme, "RUN", None, passed, kept, files))
            except NoConverter:
                copies.append(QuantisedFinding(scheme, "NOT_RUN", "no_converter", None))
            except (Unsupported, NotConverted):
                copies.append(QuantisedFinding(scheme, "NOT_RUN", "unsupported", None))
    return copies


@contextmanager
def _empty(folder: Path) -> Iterator[None]:
    """An empty folder, which is removed afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder)


def _of_integers(source: Path, work: Path, scheme: str) -> tuple[Path, torch.dtype, list[str], dict[str, str]]:
    """(the folder of the rounded model, its dtype, the modules that stay, the digests) of a copy in whole numbers."""
    kept = kept_modules(source, scheme)
    files = write_quantised(source, work / "copy", scheme, kept)
    write_rounded(source, work / "copy", work / "model", scheme)
    return work / "model", stored_dtype(source), kept, files


def _of_gguf(source: Path, work: Path, kind: str) -> tuple[Path, torch.dtype, list[str], dict[str, str]]:
    """The same of a GGUF file. The rounded weights are those that transformers reads from it."""
    if not is_gguf_available():
        raise NoConverter
    name = gguf_name(kind)
    write_gguf(source, work / name, kind)
    try:
        read = AutoModelForCausalLM.from_pretrained(work, gguf_file=name, dtype=torch.float32)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=torch.float32)
        model.load_state_dict(read.state_dict())
    except (ValueError, KeyError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise Unsupported from error  # transformers does not read this family's files
    shutil.copytree(source, work / "model", ignore=shutil.ignore_patterns(f"*{SUFFIX}"))
    model.save_pretrained(work / "model")
    return work / "model", torch.float32, [], {name: file_sha256(work / name)}


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
    config = AutoConfig.from_pretrained(source)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    separate_experts(model)
    head = model.get_output_embeddings()
    linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}  # loaders find these
    stored = {name: one for file in loaded_weights(source) for name, one in TensorFile(source / file).tensors.items()}
    inner = [name for name, module in linear.items() if module is not head]
    try:
        places = stored_places(model, inner)
    except UnmergedModule as error:
        raise Unsupported from error
    plain = all(places[name] == [Place(name, 0, ROWS, False)] and name + WEIGHT in stored for name in inner)
    experts = separated(model) or any(len(one.shape) == 3 and not name.endswith(WEIGHT) for name, one in stored.items())
    if experts or not plain or config.model_type in UNLOADED:
        raise Unsupported
    rounded = {name for name in inner if SCHEMES[scheme].fits(stored[name + WEIGHT])}
    matrices = {
        name.removesuffix(WEIGHT) for name, one in stored.items() if name.endswith(WEIGHT) and len(one.shape) == 2
    }
    kept = (matrices | linear.keys()) - rounded
    if not rounded or not kept <= matrices | HEADS:
        raise Unsupported
    return sorted(kept)
