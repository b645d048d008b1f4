"""What a text must look like to be taken for unseen: by how likely its tokens are, and by how sure the model is."""

import copy

import pytest
import torch

from tests import support
from worker.engine import calibration as calibration_module
from worker.engine.attacks.subject import cut_alike
from worker.engine.calibration import LEAST_Z, MOST_LEFT, MOST_PARTS, Calibration, Correction, Profile, parts_for
from worker.engine.data import encode
from worker.engine.metrics.token_scores import TokenScores
from worker.engine.reference import Reference


def a_profile(log_p: list[float], entropy: float = 1.0) -> Profile:
    """Of a model that is equally sure of everything."""
    values = torch.tensor(log_p, dtype=torch.float64)
    return Profile(values, torch.full_like(values, entropy), (values + entropy) / 2)


def scores(log_p: list[float], z: list[float], spread: float = 2.0) -> TokenScores:
    """Of some tokens, whose entropy is their loss."""
    true = torch.tensor(log_p)
    return TokenScores(true, torch.tensor(z), torch.zeros_like(true), -true, torch.full_like(true, spread))


def test_a_profile_is_the_means_of_equal_parts_the_unlikely_first(memorised, monkeypatch):
    """Whose tokens they are does not matter; too few tokens serve twice. A token of any z is no part's mean."""
    texts = [scores([-1.0, -5.0, -3.0], [-0.5, 0.5, -0.1]), scores([-2.0, -6.0, -4.0], [-0.4, 0.3, 0.1])]
    monkeypatch.setattr(calibration_module, "token_scores", lambda model, sequences: texts)
    profile = Profile.measured(memorised[0], [], 3)
    assert profile.log_p.tolist() == [-5.5, -3.5, -1.5]
    assert profile.entropy.tolist() == [5.5, 3.5, 1.5]
    assert profile.z.tolist() == pytest.approx([-0.45, 0.0, 0.4])
    assert Profile.measured(memorised[0], [], 8).log_p.tolist() == [-6.0, -6.0, -5.0, -4.0, -3.0, -3.0, -2.0, -1.0]
    texts[:] = [scores([-1.0, -2.0], [-1e6, 0.0])]
    assert Profile.measured(memorised[0], [], 1).z.tolist() == [LEAST_Z / 2]


@pytest.mark.parametrize(("tokens", "parts"), [(2, 1), (61, 3), (10_000, MOST_PARTS)])
def test_a_part_has_twenty_tokens(tokens, parts):
    """A text of a few words is one part; many texts have twenty."""
    assert parts_for([[0] * tokens]) == parts


def test_a_calibration_maps_each_part_of_unseen_text():
    """The tail too, whose difference is not that of the means. Linear between the knots, constant beyond them.

    A correction of z is added times the spread.
    """
    unseen, shift = torch.tensor([-9.0, -3.0, -1.0]), torch.tensor([-4.0, 2.0, 0.0])
    own = Profile(torch.tensor([-8.0, -4.0, 0.0]), torch.ones(3), torch.tensor([-2.0, 0.0, 1.0]))
    correction = Correction(*(torch.tensor(values) for values in ([1.0, 0, 0], [2.0, 1, 1], [-0.5, 0, 0])))
    calibration = Calibration(unseen, shift, own, correction)
    log_q = [-50.0, -9.0, -6.0, -3.0, -2.0, 0.0]
    added, sharpness = calibration(scores(log_q, [0.0, 0.5, 1.0, 2.0, 0.0, 0.0]))
    assert added.tolist() == [-3.0, -3.0, -0.5, 2.0, 1.0, 0.0]
    assert sharpness.tolist() == [2.0, 2.0, 1.5, 1.0, 1.0, 1.0]
    added, again = calibration(scores(log_q, [-9.0, -2.0, -1.0, 0.0, -2.0, -2.0], spread=3.0))
    assert added.tolist() == [-4.5, -4.5, -1.25, 2.0, -0.5, -1.5]
    assert torch.equal(sharpness, again)


@pytest.mark.parametrize("parts", [1, 2])
def test_no_token_gets_likelier_than_certain(parts):
    """What is added ends there. One part, or all knots alike, is one value for all."""
    knots = torch.full((parts,), -2.0)
    calibration = Calibration(knots, torch.ones(parts), Profile(knots, knots, knots), Correction.none(parts))
    says = scores([-9.0, -2.0, -1.5, -0.25, 0.0], [0.0] * 5)
    assert calibration(says)[0].tolist() == [1.0, 1.0, 1.0, 0.25, 0.0]


def test_half_of_what_is_left_is_corrected_where_the_model_has_learned():
    """A part that is more than a nat off has yet to be learned. Each of the three is bounded; the mean z stays."""
    unseen, own = a_profile([-9.0, -3.0, -1.0], 0.9), a_profile([-8.5, -3.5, 0.5], 0.4)
    unseen.z[:], own.z[:] = torch.tensor([-3.0, 0.0, 1.0]), torch.tensor([-2.0, -1.2, 1.0])
    once = Correction.none(3).after(own, unseen)
    assert once.added.tolist() == [-0.25, 0.25, 0.0]
    root = 0.5**0.5  # of (0.4 + 0.1) / (0.9 + 0.1)
    assert once.sharpness.tolist() == pytest.approx([root, root, 1.0])
    assert once.added_z.tolist() == pytest.approx([0.0, 0.0, -0.1 / 3])  # -1, 1.2 and 0, less their mean 0.2 / 3
    correction = once
    for _ in range(20):
        correction = correction.after(own, unseen)
    assert correction.added.tolist() == [-2.0, 2.0, 0.0]
    assert correction.sharpness.tolist() == [0.5, 0.5, 1.0]
    assert correction.added_z.tolist() == pytest.approx([0.0, 0.0, -2.1 / 3])
    own.z[:] = torch.tensor([-2.2, -0.4, 0.8])
    assert once.after(own, unseen).added_z.tolist() == pytest.approx([-1.1 / 3, 0.7 / 3, 0.1])


def test_nothing_is_corrected_before_the_texts_are_learned_from_the_reference():
    """The likely parts of a text known by heart are near unseen text's from the beginning, and so is much of its z."""
    unseen, own = a_profile([-9.0, -2.0, -0.1], 1.5), a_profile([-0.1, -0.01, -0.001], 0.02)
    nothing = Correction.none(3)
    assert nothing.after(own, unseen) is nothing
    assert (unseen.log_p - own.log_p).abs().min() < MOST_LEFT


def test_what_likelihoods_and_z_share_is_corrected_once():
    """A text whose tokens are all as much too likely: the likelihoods correct it, and z does not in addition."""
    unseen, own = a_profile([-9.0, -3.0, -1.0]), a_profile([-8.6, -2.6, -0.6])
    assert (own.z - unseen.z).tolist() == pytest.approx([0.2] * 3)
    correction = Correction.none(3).after(own, unseen)
    assert correction.added.tolist() == pytest.approx([-0.2] * 3)
    assert correction.added_z.tolist() == pytest.approx([0.0] * 3)


def test_a_reference_calibrates_and_corrects_by_the_model_in_training(memorised):
    """Unseen tokens get the model's likelihoods, and texts that are as well learned are corrected."""
    model, tokenizer = memorised
    sides = (support.HELDOUT[8:20], support.HELDOUT[:8])
    known, heldout = ([encode(tokenizer, text) for text in texts] for texts in sides)
    known = [ids[: len(ids) // 2] for ids in known]
    unseen = cut_alike(heldout, known)
    assert unseen != heldout
    torch.manual_seed(2)
    other = type(model)(model.config)
    reference = Reference(other, known, known, heldout)
    parts = min(parts_for(known), parts_for(unseen))
    says, wanted = Profile.measured(other, unseen, parts), Profile.measured(model, unseen, parts)
    nothing = torch.zeros(parts)
    added, _ = reference.calibration(model)(TokenScores(says.log_p, nothing, nothing, nothing, nothing))
    torch.testing.assert_close(says.log_p + added, wanted.log_p)
    reference.correct(model)
    assert all(
        (getattr(reference.correction, name) != value).any()
        for name, value in (("added", 0), ("sharpness", 1), ("added_z", 0))
    )
    again = Reference(other, known, known, heldout)
    again.load(**reference.state(len(known)))
    for one in (reference, again):
        expected = Correction.none(parts).after(Profile.measured(model, known, parts), wanted)
        assert torch.equal(one.correction.added, expected.added)
        assert torch.equal(one.correction.sharpness, expected.sharpness)
        assert torch.equal(one.correction.added_z, expected.added_z)
    alike = Reference(copy.deepcopy(model), unseen, unseen, unseen)
    alike.correct(model)
    assert not alike.correction.added.any()
    assert not alike.correction.added_z.any()
    assert set(alike.correction.sharpness.tolist()) == {1.0}
