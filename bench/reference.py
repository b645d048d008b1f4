"""The reference side of `bench.engine`: our own literal re-implementations of what the published code does.

- EL and MA: github.com/joeljang/knowledge-unlearning at 732876d, `validation_el` and `validation_ma`: one `generate`
  for each prefix length, all sequences of the batch at once; MA by generating one token for each prefix length.
- Fisher: github.com/csm9493/efficient-llm-unlearning at 272484a, `measure_importance.py`: gradients of all
  parameters, those of all linear weights squared and summed on the CPU. (There the square is that of a batch's mean;
  here each batch is one sequence, which is METHOD's definition.)
- FILA and training: the same repository, `forget.py`: full SVD of each weighted matrix, plain autograd losses on all
  logits. (There the residual W - c B A is written into the base; that costs nothing worth timing.)

b: batch, s: sequence, v: vocabulary
"""

import random
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from worker.engine.types import CausalLM


def evaluate(model: CausalLM, input_ids: Tensor, *, n: int = 10, share: float = 1.0) -> tuple[Tensor, Tensor, float]:
    """EL_n and MA by a `generate` call for each prefix.

    Args:
        model: A causal language model.
        input_ids: [b, s].
        n: The n of EL_n.
        share: The share of the prefixes to run, drawn at random; the time is scaled up, EL and MA are meaningless
            below 1.

    Returns:
        EL [b], MA [b] (float64) and seconds.
    """
    length = input_ids.shape[1]
    prefixes = list(range(1, length))
    if share < 1:
        prefixes = random.Random(0).sample(prefixes, round(share * len(prefixes)))
    el, ma = (torch.zeros(input_ids.shape[0], dtype=torch.float64) for _ in range(2))
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    steps, seconds = 0, [0.0, 0.0]
    with torch.no_grad():
        for t in prefixes:
            prompt = input_ids[:, :t]
            arguments = {"attention_mask": torch.ones_like(prompt), **settings}
            started = time.perf_counter()
            next_token = model.generate(prompt, max_length=t + 1, **arguments)[:, -1]
            ma += next_token == input_ids[:, t]
            middle = time.perf_counter()
            generated_ids = model.generate(prompt, max_length=length, **arguments)[:, t:]
            for row, (generated, label) in enumerate(
                zip(generated_ids.tolist(), input_ids[:, t:].tolist(), strict=True)
            ):
                el[row] += _overlap(generated, label, n)
            seconds[0] += middle - started
            seconds[1] += time.perf_counter() - middle
            steps += length - t
    all_steps = (length - 1) * length / 2
    scaled = seconds[0] * (length - 1) / len(prefixes) + seconds[1] * all_steps / steps
    return el / (length - n), ma / (length - 1), scaled


def _overlap(generated: Sequence[int], label: Sequence[int], n: int) -> float:
    """OVERLAP_n of METHOD; 0 where the label has no n-gram."""
    label_grams = [tuple(label[i : i + n]) for i in range(len(label) - n + 1)]
    grams = [tuple(generated[i : i + n]) for i in range(len(generated) - n + 1)]
    unique = set(label_grams)
    return sum(gram in unique for gram in grams) / len(label_grams) if label_grams else 0.0


def fisher(model: CausalLM, sequences: Sequence[list[int]]) -> dict[str, Tensor]:
    """Mean over sequences of the squared gradient of the NLL, one sequence at a time, all gradients held."""
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and n != "lm_head"]
    sums: dict[str, Tensor] = {}
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for ids in sequences:
        input_ids = torch.tensor([ids])
        loss = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss * (len(ids) - 1)
        loss.backward()
        for name, parameter in model.named_parameters():
            if name.removesuffix(".weight") in linear:
                sums[name] = sums.get(name, 0) + parameter.grad.pow(2).detach().cpu()
            parameter.grad = None
    return {name.removesuffix(".weight"): total / len(sequences) for name, total in sums.items()}


def fila(weight: Tensor, importance: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A* and B* by a full SVD of diag(w) W."""
    u, s, vh = torch.linalg.svd(importance[:, None] * weight, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * vh[:rank], (u[:, :rank] * root) / importance[:, None]


def inverted_hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 2 on all logits, gradient by autograd."""
    targets = labels[:, 1:].reshape(-1)
    rows, targets = logits[:, :-1].reshape(-1, logits.shape[-1])[targets != -100], targets[targets != -100]
    probabilities = torch.softmax(rows.float(), -1)
    target = probabilities.gather(-1, targets[:, None]).squeeze(-1)
    others = probabilities.scatter(-1, targets[:, None], -1.0)
    return torch.clamp(1 + target - others.amax(-1), min=0).mean()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """torch's own cross-entropy, on all logits."""
    return nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]).float(), labels[:, 1:].reshape(-1))
