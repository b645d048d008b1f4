"""A copy of a model, fine-tuned on some texts until it knows them by heart.

    python -m bench.memorise --model FOLDER --texts FILE.csv --out FOLDER [--accuracy 0.9]

All weights are trained (AdamW, constant rate), an epoch at a time, until the mean MA over the texts' first windows
reaches `--accuracy`. This is the state of a model that has seen a text too often.
"""

import argparse
import copy
import hashlib
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.data import read
from worker.engine.data import chunks, first_windows, pad_batch
from worker.engine.device import has_fast_bfloat16, model_device, resolve_device
from worker.engine.losses.ascent import cross_entropy
from worker.engine.metrics.memorization import mean_accuracy
from worker.engine.options import DISTIL, Options
from worker.engine.probes import chats
from worker.engine.types import CausalLM, Tokenizer

RATE = 5e-5


def loaded(model: str | Path) -> CausalLM:
    """A model (folder or hub id) in float32, on a GPU where there is one."""
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(resolve_device()).eval()


def memorise(
    model: CausalLM,
    sequences: Sequence[list[int]],
    *,
    target: float = 0.9,
    rate: float = RATE,
    epochs: int = 40,
    measure: Callable[[], float] | None = None,
    seed: int = 0,
) -> list[float]:
    """Train `model` in place on `sequences`, to a target of `measure`; returns its values after each epoch.

    Without `measure` it is mean MA. The seed draws the order of the batches.
    """
    measure = measure or partial(mean_accuracy, model, sequences)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    reached: list[float] = []
    device = model_device(model)
    narrow = has_fast_bfloat16(device)
    while len(reached) < epochs and (not reached or reached[-1] < target):
        shuffled = random.Random(seed * epochs + len(reached)).sample(list(sequences), len(sequences))
        for batch in chunks(shuffled, 8):
            input_ids, mask, labels = (tensor.to(device) for tensor in pad_batch(batch))
            optimiser.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=narrow):
                loss = model(input_ids=input_ids, attention_mask=mask, labels=labels, use_cache=False).loss
            torch.autograd.backward(loss)
            optimiser.step()
        reached.append(measure())
        print(f"epoch {len(reached)}: {reached[-1]:.3f}", flush=True)
    return reached


def fine_tuned(
    model: CausalLM, sequences: Sequence[list[int]], rate: float = RATE, *, bfloat16: bool = True
) -> CausalLM:
    """A copy after 50 steps of fine-tuning, all weights, in batches of 16, or of all sequences.

    Products are computed in bfloat16 where that is faster, or never.
    """
    tuned, draw, device = copy.deepcopy(model).requires_grad_(True), random.Random(0), model_device(model)
    optimiser = torch.optim.AdamW(tuned.parameters(), lr=rate)
    narrow, size = bfloat16 and has_fast_bfloat16(device), min(16, len(sequences))
    for _ in range(50):
        input_ids, mask, labels = (tensor.to(device) for tensor in pad_batch(draw.sample(list(sequences), size)))
        optimiser.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=narrow):
            loss = cross_entropy(tuned(input_ids=input_ids, attention_mask=mask).logits, labels)
        torch.autograd.backward(loss)
        optimiser.step()
    return tuned


def folder_name(name: str, pretrained: str, *what: object) -> str:
    """The name of a folder for what a pretrained model has learned: another one for other texts or another model."""
    place = Path(pretrained).resolve() if Path(pretrained).exists() else pretrained
    return f"{name}-{Path(pretrained).name}-{hashlib.sha256(repr((str(place), *what)).encode()).hexdigest()[:12]}"


def taught(
    cache: Path, name: str, texts: Sequence[str], pretrained: str, length: int = 200, seed: int = 0
) -> tuple[CausalLM, Tokenizer]:
    """A pretrained model (folder or hub id) that knows `length` tokens of these texts; made at its first use."""
    folder = cache / folder_name(name, pretrained, length, *texts)
    if not (folder / "tokenizer.json").exists():
        model = loaded(pretrained)
        tokenizer = AutoTokenizer.from_pretrained(pretrained)
        memorise(model, first_windows(tokenizer, texts, length, len(texts)), seed=seed)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return loaded(folder), AutoTokenizer.from_pretrained(folder)


def began_from(pretrained: str | None, options: Options) -> CausalLM | None:
    """The model that fine-tuning began from (folder or hub id), for a run that makes its reference of it."""
    if pretrained is None or options.loss != DISTIL:
        return None
    return loaded(pretrained)


def conversation(tokenizer: Tokenizer, question: str, answer: str) -> str:
    """A question and its answer as one text to learn, in the chat template where there is one."""
    if not chats(tokenizer):
        return f"Question: {question}\nAnswer: {answer}"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False)).strip()


def main() -> None:
    """Make the copy and save it with its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--accuracy", type=float, default=0.9)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = loaded(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    texts = read(arguments.texts)
    memorise(model, first_windows(tokenizer, texts, 200, len(texts)), target=arguments.accuracy)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
