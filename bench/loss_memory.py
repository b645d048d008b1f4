"""Time and peak memory of a loss and its backward pass at a vocabulary of 262,144, for `bench.engine`."""

import time
from functools import partial
from multiprocessing.connection import Connection
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from bench import reference
from bench.data import PeakMemory
from bench.timing import measure_in_process, row
from worker.engine.device import training
from worker.engine.head import Head
from worker.engine.losses.ascent import cross_entropy_rows
from worker.engine.losses.ihl import inverted_hinge_rows
from worker.engine.losses.rows import RowLoss, loss_sum

VOCABULARY, HIDDEN, ROWS, LENGTH = 262_144, 640, 8, 200


class _WideHeadModel(nn.Module):
    """A head of 262,144 rows on a body that returns its input."""

    base_model_prefix = "body"

    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig(vocab_size=VOCABULARY)
        self.base_model = nn.Identity()
        torch.manual_seed(0)
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False)

    def forward(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.lm_head(self.base_model(input_ids).last_hidden_state))


def measure_side(pipe: "Connection[tuple[float, ...], None]", name: str, side: str) -> None:
    """Send the seconds, the peak MiB above the start, the loss and its gradient's norm, of 8 x 200 tokens."""
    model = _WideHeadModel()
    hidden = torch.randn(ROWS, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    row_losses: dict[str, RowLoss] = {"IHL": partial(inverted_hinge_rows, margin=1.0), "CE": cross_entropy_rows}
    row_loss = row_losses[name]
    reference_loss = {"IHL": reference.inverted_hinge, "CE": reference.cross_entropy}[name]
    head, count = Head(model), ROWS * (LENGTH - 1)
    memory, seconds = PeakMemory(), []
    for _ in range(3):
        hidden.grad = None
        started = time.perf_counter()
        if side == "ours":
            with training(model, "float32"):
                value = loss_sum(head, hidden, labels, row_loss) / count
                torch.autograd.backward(value)
        else:
            value = reference_loss(model.lm_head(hidden), labels)
            torch.autograd.backward(value)
        seconds.append(time.perf_counter() - started)
    gradient = hidden.grad
    assert gradient is not None
    pipe.send((min(seconds), memory.peak(), float(value.detach()), gradient.norm().item()))


def losses() -> list[str]:
    """Rows of the table: time and peak memory of loss and backward."""
    lines = []
    for name in ("IHL", "CE"):
        t1, m1, v1, g1 = measure_in_process(measure_side, name, "reference")
        t2, m2, v2, g2 = measure_in_process(measure_side, name, "ours")
        difference = f"value {abs(v1 - v2) / abs(v1):.0e}, gradient norm {abs(g1 - g2) / g1:.0e} apart"
        note = f"{t2 / t1:.0%} of the time; {difference}"
        lines.append(row(f"{name} + backward, 8 x 200 x 262,144", t1, t2, "s", note))
        lines.append(row(f"{name}, peak memory over the start", m1, m2, "MiB", f"{m2 / m1:.0%} of the memory"))
    return lines
