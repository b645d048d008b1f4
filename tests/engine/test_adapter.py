"""FILA, the adapter and the merge: nothing moves at the start, the base never, and W' = W + c (BA - B0 A0)."""

import hashlib

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import support
from worker.engine import Options, fila_factors, row_importance
from worker.engine.adapter import Adapter, find_targets, target_weights
from worker.engine.errors import UnknownPlugin
from worker.engine.fisher import fisher_diagonal, module_groups
from worker.engine.inits import INITS
from worker.engine.merge import delta, merge_into, shrunk
from worker.engine.unlearn import merged_copy

RANK, SCALE = 4, 2.0


def sequences(count: int, length: int = 12, seed: int = 0) -> list[list[int]]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, support.VOCABULARY, (count, length), generator=generator).tolist()


def trained_adapter(model, init: str = "fila") -> Adapter:
    """An adapter on all targets whose factors were moved as training would."""
    names = find_targets(model)
    importance = row_importance(model, sequences(2), sequences(3, seed=1), names)
    factors = {n: INITS[init].factors(w, importance[n], RANK, SCALE) for n, w in target_weights(model, names).items()}
    adapter = Adapter(model, factors, RANK, SCALE)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return adapter


@pytest.mark.parametrize("init", INITS)
def test_logits_do_not_move_at_initialisation(family, init):
    """Max abs difference <= 1e-5 in float32, for every family and every initialisation."""
    model = support.random_model(family, gain=1.0)
    input_ids = torch.tensor(sequences(2))
    names = find_targets(model)
    importance = row_importance(model, sequences(2), sequences(3, seed=1), names)
    factors = {n: INITS[init].factors(w, importance[n], RANK, SCALE) for n, w in target_weights(model, names).items()}
    with torch.no_grad():
        before = model(input_ids=input_ids).logits
        adapter = Adapter(model, factors, RANK, SCALE)
        assert (model(input_ids=input_ids).logits - before).abs().max() <= 1e-5
        assert all(p.requires_grad for p in adapter.parameters())
        adapter.detach()
        assert torch.equal(model(input_ids=input_ids).logits, before)


def test_merge_through_disk_equals_base_plus_adapter(family, tmp_path):
    """Merged, saved and loaded again, the model says what base and adapter said; the base's file is untouched."""
    model = support.random_model(family, gain=1.0)
    model.save_pretrained(tmp_path / "base")
    before = hashlib.sha256((tmp_path / "base" / "model.safetensors").read_bytes()).hexdigest()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    adapter, input_ids = trained_adapter(model), torch.tensor(sequences(2))
    with torch.no_grad():
        expected = model(input_ids=input_ids).logits
        state = adapter.state()
        base = adapter.detach()
        plain = base(input_ids=input_ids).logits
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    merge_into(fresh, state, SCALE)
    fresh.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        found = loaded(input_ids=input_ids).logits
    assert (found - expected).abs().max() < 1e-5
    assert (found - plain).abs().max() > 1e-3
    assert hashlib.sha256((tmp_path / "base" / "model.safetensors").read_bytes()).hexdigest() == before
    assert all(torch.equal(weights[name], value) for name, value in base.state_dict().items())


def test_merge_is_w_plus_delta_and_happens_once():
    """Each target's weight is W + c (BA - B0 A0); a second merge into the same model is refused."""
    model = support.random_model("gpt2", gain=1.0)
    adapter = trained_adapter(model)
    state = adapter.state()
    base = adapter.detach()
    merged = merged_copy(base, state, Options(rank=RANK))
    for name in adapter.names:
        difference = target_weights(merged, [name])[name] - target_weights(base, [name])[name]
        torch.testing.assert_close(difference, delta(state, name, SCALE), atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="merged already"):
        merge_into(merged, state, SCALE)


def test_tied_embeddings_stay_tied(tmp_path):
    """GPT-2's head is its embedding, after the merge and after the disk."""
    model = support.random_model("gpt2", gain=1.0)
    adapter = trained_adapter(model)
    state = adapter.state()
    merged = merged_copy(adapter.detach(), state, Options(rank=RANK))
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_state_goes_back_in():
    """Loading a state gives the logits it was taken at."""
    model = support.random_model("llama", gain=1.0)
    adapter, input_ids = trained_adapter(model), torch.tensor(sequences(2))
    with torch.no_grad():
        expected, state = model(input_ids=input_ids).logits, adapter.state()
        for parameter in adapter.parameters():
            parameter.zero_()
        adapter.load(state)
        torch.testing.assert_close(model(input_ids=input_ids).logits, expected)


def test_a_share_of_the_change():
    """`shrunk` and `set_strength` say the same: W + share x c (BA - B0 A0), the factors themselves as they were."""
    model = support.random_model("llama", gain=1.0)
    adapter, input_ids = trained_adapter(model), torch.tensor(sequences(2))
    state = adapter.state()
    with torch.no_grad():
        adapter.set_strength(0.25)
        expected = model(input_ids=input_ids).logits
        assert all(torch.equal(value, state[name]) for name, value in adapter.state().items())
        merged = merged_copy(adapter.detach(), shrunk(state, 0.25), Options(rank=RANK))
        torch.testing.assert_close(merged(input_ids=input_ids).logits, expected, atol=1e-5, rtol=1e-4)
    for name in adapter.names:
        torch.testing.assert_close(delta(shrunk(state, 0.25), name, SCALE), 0.25 * delta(state, name, SCALE))


def test_fila_factors_are_the_weighted_projection():
    """c B* A* = W V V^T with V from the SVD of diag(w) W; the scale of w does not matter, nor a zero row."""
    torch.manual_seed(0)
    weight = torch.randn(24, 16) @ torch.diag(torch.linspace(3, 0.1, 16))
    importance = torch.rand(24) + 0.1
    importance[3] = 0.0
    a, b = fila_factors(weight, importance, RANK, SCALE)
    v = torch.linalg.svd(importance[:, None] * weight).Vh[:RANK].T
    assert a.shape == (RANK, 16)
    assert b.shape == (24, RANK)
    torch.testing.assert_close(SCALE * b @ a, weight @ v @ v.T, atol=1e-3, rtol=1e-3)
    a2, b2 = fila_factors(weight, 7 * importance, RANK, SCALE)
    torch.testing.assert_close(b2 @ a2, b @ a, atol=1e-4, rtol=1e-3)


def test_fila_split_matches_the_paper():
    """Where no row is dead, B* = diag(1/w) U sqrt(S/c) and A* = sqrt(S/c) V^T, up to signs."""
    torch.manual_seed(1)
    weight, importance = torch.randn(20, 12), torch.rand(20) + 0.5
    a, b = fila_factors(weight, importance, RANK, SCALE)
    u, s, vh = torch.linalg.svd(importance[:, None] * weight, full_matrices=False)
    root = (s[:RANK] / SCALE).sqrt()
    torch.testing.assert_close(a.abs(), (root[:, None] * vh[:RANK]).abs(), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(b.abs(), (u[:, :RANK] * root / importance[:, None]).abs(), atol=2e-3, rtol=2e-3)


def test_fila_is_reproducible():
    """The randomised SVD has a generator of its own: the same bytes each time."""
    weight, importance = torch.randn(40, 30), torch.ones(40)
    first, second = (fila_factors(weight, importance, RANK, SCALE) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_fisher_equals_one_backward_a_sequence(family):
    """Batches of activations and output gradients give what a pass for each sequence gives."""
    model = support.random_model(family, gain=1.0)
    names = find_targets(model)
    rows = [*sequences(3), *sequences(2, length=7, seed=4)]
    fast = fisher_diagonal(model, rows, names, batch_size=2)
    slow = {name: torch.zeros_like(w) for name, w in target_weights(model, names).items()}
    for row in rows:
        model.zero_grad()
        input_ids = torch.tensor([row])
        log_p = torch.log_softmax(model(input_ids=input_ids).logits[:, :-1], -1)
        (-log_p.gather(-1, input_ids[:, 1:, None]).sum()).backward()
        for name in names:
            grad = model.get_submodule(name).weight.grad
            slow[name] += (grad if grad.shape == slow[name].shape else grad.T) ** 2 / len(rows)
    for name in names:
        torch.testing.assert_close(fast[name], slow[name], atol=1e-7, rtol=1e-3)
    assert all(p.requires_grad for p in model.parameters())


def test_modules_in_groups_give_the_same_importance(family):
    """Little memory means more passes, one module each, and the same numbers."""
    model = support.random_model(family, gain=1.0)
    names = find_targets(model)
    fractions: list[float] = []
    whole = row_importance(model, sequences(3), sequences(2, seed=1), names)
    parts = row_importance(model, sequences(3), sequences(2, seed=1), names, memory_bytes=1, progress=fractions.append)
    for name in names:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-6, rtol=1e-5)
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)


def test_groups_stay_within_their_memory():
    """A 7B shape, scaled down: what one group's sums take is never over the bound, unless by a single module."""
    model = support.random_model("llama")
    names = find_targets(model)
    sizes = {name: 8 * w.numel() for name, w in target_weights(model, names).items()}
    for bound in (1, max(sizes.values()), 2 * max(sizes.values()), sum(sizes.values())):
        groups = module_groups(model, names, bound)
        assert [name for group in groups for name in group] == names
        assert all(len(group) == 1 or sum(sizes[name] for name in group) <= bound for group in groups)
    assert len(groups) == 1


def test_row_importance_has_mean_one_and_finds_the_row():
    """float32 [d], mean 1; rows the retain set needs more weigh less."""
    model = support.random_model("llama", gain=1.0)
    names = find_targets(model)
    importance = row_importance(model, sequences(3), sequences(3, seed=9), names)
    assert set(importance) == set(names)
    for name, weights in importance.items():
        assert weights.shape == (model.get_submodule(name).weight.shape[0],)
        assert weights.dtype == torch.float32
        assert weights.mean().item() == pytest.approx(1.0, rel=1e-4)
    same = row_importance(model, sequences(3), sequences(3), names)
    assert all(same[n].std() < importance[n].std() for n in names)


def test_unknown_target_module_is_refused():
    """A policy that names no module of the model gets an error that names the field."""
    with pytest.raises(UnknownPlugin, match="target_modules"):
        find_targets(support.random_model("gpt2"), ["nope"])
