"""What a model must say about the tokens of a text so that the text looks unseen to whoever measures likelihoods.

Unseen tokens have other log-likelihoods under the model than under the reference. To add the difference of the means
is not enough: whoever looks at the least likely tokens alone (min-k) looks at the tail. So each of the two models
orders the tokens by its own log-likelihoods, in equal parts, and each part's mean under the reference is mapped to the
same part's mean under the model.

A model learns only partly what a reference says. So after each epoch the parts of the texts to forget are compared with
those of unseen text, and half of what is left is corrected: how likely the tokens are, how sure the model is, and z,
which min-k++ reads. There the tokens are ordered by z, and their level stays as it is.

k: parts
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from worker.engine.metrics.token_scores import TokenScores, token_scores
from worker.engine.types import CausalLM

LEAST_TOKENS, MOST_PARTS = 20, 20  # tokens in a part; parts
RATE = 0.5  # of what is left after an epoch
MOST_LEFT = 1.0  # nats, or of z; a part where more is left has yet to be learned
MOST_CORRECTED, MOST_SHARPENED = 2.0, 2.0  # nats, or of z; as a factor
LEAST_ENTROPY = 0.1  # nats, added to both sides of a ratio
LEAST_Z = -20.0  # a model that is sure and wrong has any z; one token must not be a part's mean


@dataclass(frozen=True, slots=True)
class Profile:
    """How likely tokens are, and how sure a model is where it predicts them: means of equal parts of the tokens.

    Attributes:
        log_p: Mean log p(x_t) [k], ascending, in nats; parts of the tokens ordered by it.
        entropy: Mean entropy of the predictions of the same parts [k], in nats.
        z: Mean z [k], ascending, as in `TokenScores` and LEAST_Z at least; parts of the tokens ordered by it.
    """

    log_p: Tensor
    entropy: Tensor
    z: Tensor

    @classmethod
    def measured(cls, model: CausalLM, sequences: Sequence[list[int]], parts: int) -> "Profile":
        """The profile of all predicted tokens of these sequences, in so many parts."""
        scores = TokenScores(*map(torch.cat, zip(*token_scores(model, sequences), strict=True)))
        n, z = len(scores.z), scores.z.clamp(min=LEAST_Z)
        slices = [slice(i * n // parts, max(i * n // parts + 1, (i + 1) * n // parts)) for i in range(parts)]

        def means(values: Tensor, by: Tensor) -> Tensor:
            ordered = values[by.argsort(stable=True)]
            return torch.stack([ordered[one].mean() for one in slices])

        log_p, entropy = (means(values, scores.log_p) for values in (scores.log_p, scores.entropy))
        return cls(log_p, entropy, means(z, z))


def parts_for(sequences: Sequence[list[int]]) -> int:
    """The number of parts that the tokens of these sequences suffice for."""
    return max(1, min(MOST_PARTS, sum(len(ids) - 1 for ids in sequences) // LEAST_TOKENS))


@dataclass(frozen=True, slots=True)
class Correction:
    """What the epochs so far have taught to change in what the reference says, for each part of the texts to forget.

    Attributes:
        added: To the log-likelihoods of the true tokens [k], in nats; MOST_CORRECTED at most, of either sign.
        sharpness: Factors of the logits [k]; MOST_SHARPENED at most, and at least its reciprocal.
        added_z: To z of the true tokens [k], in parts by z; MOST_CORRECTED at most, of either sign.
    """

    added: Tensor
    sharpness: Tensor
    added_z: Tensor

    @classmethod
    def none(cls, parts: int) -> "Correction":
        """Nothing is to be changed yet."""
        return cls(*(torch.full((parts,), value, dtype=torch.float64) for value in (0.0, 1.0, 0.0)))

    @classmethod
    def loaded(cls, state: Mapping[str, Sequence[float]]) -> "Correction":
        """The correction of a `state`."""
        return cls(**{name: torch.tensor(values, dtype=torch.float64) for name, values in state.items()})

    def state(self) -> dict[str, list[float]]:
        """What it is made of, for a checkpoint."""
        return {name: values.tolist() for name, values in asdict(self).items()}

    def after(self, own: Profile, unseen: Profile) -> "Correction":
        """The correction for the next epoch, by profiles of the model that is being trained.

        Args:
            own: Of the texts to forget.
            unseen: Of unseen text.

        Returns:
            The correction: the same, if the texts have yet to be learned; a part that has yet to be keeps what it had.
        """
        left, left_z = unseen.log_p - own.log_p, unseen.z - own.z
        if left.mean().abs() >= MOST_LEFT:
            return self
        ratio = (own.entropy + LEAST_ENTROPY) / (unseen.entropy + LEAST_ENTROPY)
        sharpness = self.sharpness * torch.where(left.abs() < MOST_LEFT, ratio**RATE, 1.0)
        return Correction(
            _nearer(self.added, left),
            sharpness.clamp(1 / MOST_SHARPENED, MOST_SHARPENED),
            _nearer(self.added_z, left_z - left_z.mean()),  # or it would work against what is added
        )


@dataclass(frozen=True, slots=True)
class Calibration:
    """By what the reference says of a true token: what is added to its log-likelihood, and the factor of the logits.

    Attributes:
        unseen: Mean log-likelihoods of unseen tokens under the reference, part by part [k], ascending.
        shift: What is added there [k], so that they are those under the model.
        own: The profile of the texts to forget under the reference.
        correction: What is corrected there.
    """

    unseen: Tensor
    shift: Tensor
    own: Profile
    correction: Correction

    def __call__(self, says: TokenScores) -> tuple[Tensor, Tensor]:
        """What is added to the log-likelihoods of n true tokens and the factor of the logits there, [n] each.

        The sum with the log-likelihood is at most 0: no token is likelier than certain.
        """
        log_q, correction = says.log_p, self.correction
        added = _interpolated(log_q, self.unseen, self.shift) + _interpolated(log_q, self.own.log_p, correction.added)
        added += _interpolated(says.z, self.own.z, correction.added_z) * says.spread
        return torch.minimum(added, -log_q), _interpolated(log_q, self.own.log_p, correction.sharpness)


def _nearer(added: Tensor, left: Tensor) -> Tensor:
    """What is added [k], and half of what is left [k] where that is little."""
    step = torch.where(left.abs() < MOST_LEFT, RATE * left, 0.0)
    return (added + step).clamp(-MOST_CORRECTED, MOST_CORRECTED)


def _interpolated(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Linear between ascending knots [k] with values [k], constant beyond them."""
    knots, values = knots.to(at), values.to(at)
    after = torch.searchsorted(knots, at.contiguous()).clamp(1, len(knots) - 1)
    before = after - 1
    share = (at - knots[before]) / (knots[after] - knots[before]).clamp(min=1e-6)
    return torch.lerp(values[before], values[after], share.clamp(0, 1))
