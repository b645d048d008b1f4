"""Fisher importance and the SVD of all targets against the published code's way, for `bench.engine`."""

from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from bench import reference
from bench.data import PeakMemory, read
from bench.paper_setup import LENGTH, forget_sequences
from bench.timing import measure_in_process, row, timed
from worker.engine.adapter import find_targets, target_weights
from worker.engine.data import first_windows
from worker.engine.fisher import fisher_diagonal
from worker.engine.inits.fila import fila_factors
from worker.engine.types import CausalLM, Tokenizer

RANK, SCALE = 16, 2.0


def measure_fisher_peak(
    pipe: "Connection[tuple[float, ...], None]", side: str, path: str, sequences: list[list[int]]
) -> None:
    """Send one side's peak MiB over the loaded model; more sequences than these do not change it."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()
    memory = PeakMemory()
    if side == "ours":
        fisher_diagonal(model, sequences, find_targets(model))
    else:
        reference.fisher(model, sequences)
    pipe.send((memory.peak(),))


def fisher(model: CausalLM, tokenizer: Tokenizer, data: Path, path: str) -> list[str]:
    """Rows of the table: Fisher of 32 + 32 sequences."""
    names = find_targets(model)
    forget = forget_sequences(tokenizer, data, 32, LENGTH).tolist()
    retain = first_windows(tokenizer, read(data / "general" / "wikitext.csv"), LENGTH, 32)
    ours, seconds = timed(lambda: [fisher_diagonal(model, side, names) for side in (forget, retain)])
    theirs, reference_seconds = timed(lambda: [reference.fisher(model, side) for side in (forget, retain)])
    peaks = {side: measure_in_process(measure_fisher_peak, side, path, forget[:8])[0] for side in ("ours", "reference")}
    difference = max(_relative_difference(a[n], b[n]) for a, b in zip(ours, theirs, strict=True) for n in names)
    rounding = _rounding(model, forget[:2], names)
    note = f"{difference:.0e} apart (relative); from float64 on two sequences: ours {rounding[0]:.0e}, reference "
    note += f"{rounding[1]:.0e}, ours computed in float64 {rounding[2]:.0e}; "
    note += f"peak memory over the model +{peaks['ours']:.0f} MiB, reference +{peaks['reference']:.0f} MiB"
    return [row("Fisher, 32 + 32 x 200", reference_seconds, seconds, "s", note)]


def _rounding(model: CausalLM, sequences: list[list[int]], names: list[str]) -> list[float]:
    """Largest difference to the reference in float64: ours, the reference in float32, ours in float64."""
    sides = fisher_diagonal(model, sequences, names), reference.fisher(model, sequences)
    model.double()
    exact, wide = reference.fisher(model, sequences), fisher_diagonal(model, sequences, names)
    model.float()
    return [max(_relative_difference(side[n], exact[n]) for n in names) for side in (*sides, wide)]


def _relative_difference(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def svd_seconds(model: CausalLM) -> tuple[float, float]:
    """Seconds of FILA's factors of all targets: the reference's full SVD, and ours."""
    weights = target_weights(model, find_targets(model))
    importance = {
        n: torch.rand(w.shape[0], generator=torch.Generator().manual_seed(0)) + 0.5 for n, w in weights.items()
    }
    with torch.no_grad():
        _, theirs = timed(lambda: [reference.fila(w, importance[n], RANK, SCALE) for n, w in weights.items()])
        _, ours = timed(lambda: [fila_factors(w, importance[n], RANK, SCALE) for n, w in weights.items()])
    return theirs, ours


def svd(model: CausalLM) -> list[str]:
    """Rows of the table: FILA's factors of all targets."""
    theirs, ours = svd_seconds(model)
    return [row("SVD of all targets, rank 16", theirs, ours, "s", "full against randomised")]
