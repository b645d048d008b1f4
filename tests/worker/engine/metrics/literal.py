"""A slow, literal reading of METHOD's metrics."""

import torch

from worker.engine.device import measuring


def next_tokens(model, prefixes: list[list[int]]) -> list[int]:
    """Greedy, one forward pass over whole prefixes of one length: nothing is padded, and nothing is cached.

    Head and argmax are in float32; ties go to the lowest id.
    """
    with measuring(model):
        return model(input_ids=torch.tensor(prefixes), use_cache=False).logits[:, -1].float().argmax(-1).tolist()


def literal_ma(model, sequences: list[list[int]]) -> list[float]:
    """MA of sequences of one length, one token at a time."""
    length = len(sequences[0])
    predicted = [next_tokens(model, [ids[:t] for ids in sequences]) for t in range(1, length)]
    return [
        sum(step[row] == ids[t] for t, step in enumerate(predicted, start=1)) / (length - 1)
        for row, ids in enumerate(sequences)
    ]


def literal_continuations(model, sequences: list[list[int]], eos: int | None) -> list[list[list[int]]]:
    """For each sequence and t = 1..T-1, the greedy continuation of x_<t: T-t tokens, or fewer if EOS comes first.

    All prefixes are continued one token at a time. The ones that have reached the same length share a forward pass.
    """
    length = len(sequences[0])
    texts = {(row, t): ids[:t] for row, ids in enumerate(sequences) for t in range(1, length)}
    ended: set[tuple[int, int]] = set()
    for reached in range(1, length):
        growing = [key for key in texts if len(texts[key]) == reached and key not in ended]
        for key, token in zip(growing, next_tokens(model, [texts[key] for key in growing]), strict=True):
            if token == eos:
                ended.add(key)
            else:
                texts[key] = [*texts[key], token]
    return [[texts[row, t][t:] for t in range(1, length)] for row in range(len(sequences))]


def literal_el(ids: list[int], continuations: list[list[int]], n: int) -> float:
    """EL_n, one prefix and one n-gram at a time."""
    total = 0.0
    for t in range(1, len(ids) - n + 1):
        generated = continuations[t - 1]
        label = [tuple(ids[i : i + n]) for i in range(t, len(ids) - n + 1)]
        said = [tuple(generated[i : i + n]) for i in range(len(generated) - n + 1)]
        total += sum(gram in label for gram in said) / len(label)
    return total / (len(ids) - n)
