"""Losses on all logits at once, by autograd."""

import torch


def plain_ihl(logits: torch.Tensor, labels: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """Eq. 2 read literally, gradient by autograd; a sum over tokens."""
    targets = labels[:, 1:].reshape(-1)
    counted = targets != -100
    p = torch.softmax(logits[:, :-1].reshape(-1, logits.shape[-1])[counted], -1)
    targets = targets[counted]
    target = p.gather(-1, targets[:, None]).squeeze(-1)
    others = p.masked_fill(torch.nn.functional.one_hot(targets, p.shape[-1]).bool(), -1)
    return torch.clamp(margin + target - others.amax(-1), min=0).sum()


def plain_ce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """torch's own cross-entropy, a sum over tokens."""
    rows, targets = logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
    return torch.nn.functional.cross_entropy(rows, targets, reduction="sum")


def plain_wga(logits: torch.Tensor, labels: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """The log-likelihood of each token, weighted with its likelihood; a sum over tokens."""
    rows, targets = logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
    log_p = -torch.nn.functional.cross_entropy(rows, targets, reduction="none")
    return (log_p.detach().exp() * log_p).sum()
