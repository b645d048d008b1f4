"""Abilities that unlearning should not change: LAMBADA's last word, and answers in dialogues."""

import json
import re
from collections import Counter
from pathlib import Path

import torch

from bench.data import read
from worker.engine.data import chunks, encode
from worker.engine.device import measuring, model_device
from worker.engine.metrics.predictions import predictions
from worker.engine.types import CausalLM, Tokenizer

LAMBADA, DIALOGUES, ANSWER, CONTEXT = 1000, 40, 32, 160


def lambada_accuracy(model: CausalLM, tokenizer: Tokenizer, path: Path) -> float:
    """Share of the first LAMBADA texts whose last word the model predicts, token by token.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        path: The CSV of texts.

    Returns:
        A value in 0..1.
    """
    hits = 0
    texts = read(path)[:LAMBADA]
    with measuring(model):
        for batch in chunks(texts, 16):
            split = [text.rstrip().rsplit(" ", 1) for text in batch]
            ids = [encode(tokenizer, f"{before} {word}") for before, word in split]
            sizes = [len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) for _, word in split]
            for row, tokens, size in zip(predictions(model, ids, use_cache=False), ids, sizes, strict=True):
                hits += row[-size:] == tokens[-size:]
    return hits / len(texts)


def dialogue_f1(model: CausalLM, tokenizer: Tokenizer, folder: Path) -> float:
    """Mean word F1 between the model's greedy next turn and the real one, over two dialogue sets.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        folder: The folder of the two JSON files.

    Returns:
        A value in 0..1.
    """
    scores: list[float] = []
    for name in ("wizard_of_wikipedia", "empathetic_dialogues"):
        dialogues = list(json.loads((folder / f"{name}.json").read_text())["text"].values())[:DIALOGUES]
        prompts = [encode(tokenizer, "\n".join(turns[:-1]) + "\n") for turns in dialogues]
        prompts = [ids[:1] + ids[1:][-CONTEXT:] for ids in prompts]
        answers = [_first_line(tokenizer.decode(ids)) for ids in _generate(model, prompts)]
        scores += [_f1(answer, turns[-1]) for answer, turns in zip(answers, dialogues, strict=True)]
    return sum(scores) / len(scores)


def _generate(model: CausalLM, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy continuations of ANSWER tokens."""
    width = max(map(len, prompts))
    input_ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    device = model_device(model)
    with measuring(model):
        generated = model.generate(
            input_ids.to(device), attention_mask=mask.to(device), max_new_tokens=ANSWER, do_sample=False, pad_token_id=0
        )
    rows: list[list[int]] = generated[:, width:].tolist()
    return rows


def _first_line(text: str) -> str:
    """The first line that is not blank."""
    return text.strip().split("\n")[0]


def _f1(answer: str, expected: str) -> float:
    """Word F1, case and punctuation folded."""
    a, b = (Counter(re.findall(r"\w+", text.lower())) for text in (answer, expected))
    common = sum((a & b).values())
    return 2 * common / (a.total() + b.total()) if common else 0.0
