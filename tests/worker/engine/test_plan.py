"""What a job needs is counted from shapes alone, and settings are chosen that fit."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.worker.engine.families import tiny_model
from worker.engine import ahead, other_prompts, reference, variants
from worker.engine.errors import Unplanned
from worker.engine.live_bytes import LiveBytes
from worker.engine.options import Options
from worker.engine.plan import LEAST_ROWS, MERGED, PROCESS, PRODUCT, SLACK, Shapes, plan

CONFIG = LlamaConfig(
    vocab_size=1000,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
OPTIONS = Options(sequence_length=100)


def test_live_bytes_are_those_that_are_held():
    """A view takes nothing, what is dropped is free, and a model's own weights are not counted."""
    with FakeTensorMode():
        model = torch.nn.Linear(10, 20)
        with LiveBytes(model) as counted, torch.no_grad():
            x = torch.zeros(30, 10)
            assert counted.live == 30 * 10 * 4
            view = x[:5].T
            output = model(x)
            assert counted.live == 30 * (10 + 20) * 4
            del output, view
            assert counted.live == 30 * 10 * 4
    assert counted.peak >= 30 * (10 + 20) * 4


def test_needs_follow_from_the_shapes():
    """Weights as stored; the cache of the rows that are decoded at once; a graph that recomputing makes smaller."""
    shapes = Shapes(CONFIG, 2, OPTIONS)
    with FakeTensorMode():
        parameters = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(CONFIG).parameters())
    assert (shapes.parameters, shapes.stored) == (parameters, 2 * parameters)
    needs = {need.stage: need for need in shapes.needs(OPTIONS)}
    assert list(needs) == ["measure", "initialise", "train", "merge", "verify"]
    a_token = 2 * 2 * 2 * (256 // 4) * 4  # layers, keys and values, heads of them, their size, bytes
    cached = OPTIONS.row_budget * 100 * a_token
    assert SLACK * (PRODUCT + cached) < needs["measure"].activations < SLACK * (PRODUCT + 2 * cached)
    assert needs["measure"].weights == 2 * parameters
    assert needs["measure"].total == PROCESS + 2 * parameters + needs["measure"].activations
    fewer = {need.stage: need for need in shapes.needs(replace(OPTIONS, row_budget=LEAST_ROWS))}
    assert fewer["measure"].activations < SLACK * (PRODUCT + cached / 2)
    trained = [
        shapes.needs(replace(OPTIONS, row_budget=LEAST_ROWS, checkpoint_activations=on))[2].activations
        for on in (True, False)
    ]
    assert trained[0] < trained[1]


def test_samples_in_bfloat16_take_a_narrow_copy_of_wide_weights():
    """In one process; several narrow a layer at a time. Of weights in 16 bits there is none."""

    options = replace(OPTIONS, row_budget=LEAST_ROWS)

    def shapes(dtype: str, itemsize: int) -> Shapes:
        return Shapes(CONFIG, itemsize, replace(options, train_dtype=dtype))

    both = {n: (shapes("bfloat16", n), shapes("float32", n)) for n in (2, 4)}
    parameters, more = both[4][0].parameters, {}
    for (n, pair), of in product(both.items(), (1, 8)):
        narrow, wide = (one.needs(options, of)[0].activations for one in pair)
        more[n, of] = narrow - wide
    assert more[4, 1] == pytest.approx(SLACK * 2 * parameters, abs=2)
    assert 0 < more[4, 8] < more[4, 1]
    assert (more[2, 1], more[2, 8]) == (0, 0)


def test_a_reference_takes_memory_of_its_own():
    """With its optimiser, while it is trained."""
    shapes = Shapes(CONFIG, 4, OPTIONS)
    plain = {need.stage: need.weights for need in shapes.needs(OPTIONS)}
    distilled = {need.stage: need.weights for need in shapes.needs(replace(OPTIONS, loss="distil"))}
    assert "reference" not in plain
    assert distilled["train"] == 2 * plain["train"]
    assert distilled["reference"] == 6 * plain["train"]


def test_what_a_reference_says_of_the_texts_takes_memory():
    """Its last hidden states, of each text, its variants, and after other prompts; of many texts there are fewer."""

    options, each = replace(OPTIONS, loss="distil"), 4 * OPTIONS.sequence_length * CONFIG.hidden_size

    def needed(sequences: int) -> int:
        needs = Shapes(CONFIG, 4, options, sequences).needs(options)
        return next(need.activations for need in needs if need.stage == "train")

    assert needed(32) - needed(1) == pytest.approx(SLACK * each * 31 * (1 + variants.EACH + other_prompts.EACH), abs=2)
    long = replace(options, sequence_length=4096)
    assert Shapes(CONFIG, 4, long, 32)._said == 4 * (32 + 16 + 16) * 4096 * CONFIG.hidden_size
    most = variants.MOST // variants.EACH
    assert needed(most + 30) - needed(most) == pytest.approx(SLACK * each * 30, abs=2)


def test_distillation_counts_its_own_batches_and_what_looking_ahead_holds(monkeypatch):
    """Whatever the policy's batches are, as long as these are smaller; with IHL neither."""
    shapes, attacks = Shapes(CONFIG, 4, OPTIONS), {"relearned": "report"}
    options = replace(OPTIONS, loss="distil", batch_size=1, relearn_steps=0, attacks=attacks, row_budget=LEAST_ROWS)

    def needed(stage: str, **changes: object) -> int:
        needs = shapes.needs(replace(options, **changes))
        return next(need.activations for need in needs if need.stage == stage)

    assert needed("train", batch_size=20) == needed("train") < needed("train", batch_size=40)
    assert needed("train", loss="ihl") < needed("train")
    assert needed("train", loss="ihl", relearn_steps=1) == needed("train", loss="ihl")
    assert needed("verify") == needed("verify", loss="ihl") > needed("verify", attacks={})  # it has its own batches
    more, factors = needed("train", relearn_steps=1) - needed("train"), needed("merge") / SLACK - PRODUCT
    moved = 5 * (4 * shapes.parameters + factors / MERGED)  # of so small a model
    assert more / SLACK == pytest.approx(4 / MERGED * factors + moved, rel=1e-5)
    monkeypatch.setattr(ahead, "LARGEST_WHOLE", shapes.parameters - 1)
    assert needed("train", relearn_steps=1) - needed("train") == pytest.approx(more - SLACK * moved, rel=1e-5)


def test_only_a_reference_that_begins_from_nothing_holds_all_logits(monkeypatch):
    """A larger one begins from a base, whose head stays."""

    def reference_bytes() -> int:
        needs = Shapes(CONFIG, 4, OPTIONS).needs(replace(OPTIONS, loss="distil"))
        return next(need.total for need in needs if need.stage == "reference")

    whole = reference_bytes()
    monkeypatch.setattr(reference, "LARGEST_FRESH", 1000)
    logits = 4 * 4 * reference.BATCH * OPTIONS.sequence_length * CONFIG.vocab_size
    assert whole - reference_bytes() >= logits


@pytest.mark.slow
def test_the_plan_is_the_largest_that_fits():
    """First fewer rows at once, then more devices; what fits on none says how many would do."""
    everything = plan(CONFIG, 4, OPTIONS, devices=4, memory=2**40)
    assert everything.fits
    assert (everything.devices, everything.options) == (1, OPTIONS)
    needs = {need.stage: need.total for need in everything.needs}
    less = plan(CONFIG, 4, OPTIONS, devices=1, memory=needs["measure"] - 1)
    assert less.fits
    assert less.options.row_budget < OPTIONS.row_budget or less.options.checkpoint_activations
    smallest = plan(CONFIG, 4, OPTIONS, devices=1, memory=1)
    assert not smallest.fits
    assert smallest.enough is None
    assert (smallest.options.row_budget, smallest.options.checkpoint_activations) == (LEAST_ROWS, True)
    large = LlamaConfig(**CONFIG.to_dict() | {"num_hidden_layers": 8, "hidden_size": 1024, "intermediate_size": 2048})
    few = replace(OPTIONS, row_budget=LEAST_ROWS)
    memory = plan(large, 4, few, devices=1, memory=1).peak - 2**26
    assert plan(large, 4, few, devices=1, memory=memory).enough == 2
    shared = plan(large, 4, few, devices=2, memory=memory)
    assert shared.fits
    assert shared.devices == 2


@pytest.mark.parametrize(
    "family",
    [
        "gemma3_text",
        "gpt2",
        "gpt_oss",
        "mamba",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mixtral", "opt")),
    ],
)
def test_families_of_each_kind_have_a_plan(family):
    """Their own code runs on shapes; nothing of it is computed."""
    needs = Shapes(tiny_model(family).config, 4, Options(sequence_length=16)).needs(Options(sequence_length=16))
    assert all(need.activations > 0 for need in needs)


def test_a_model_whose_code_looks_at_numbers_has_no_plan():
    """Its jobs run without one."""
    with pytest.raises(Unplanned):
        Shapes(tiny_model("jetmoe").config, 4, Options(sequence_length=16)).needs(Options(sequence_length=16))


@pytest.mark.slow
def test_processes_of_one_machine_share_its_memory():
    """Two need no less of it than one."""
    alone = plan(CONFIG, 4, OPTIONS, devices=1, memory=1)
    assert not plan(CONFIG, 4, OPTIONS, devices=4, memory=alone.peak - 1, one_machine=True).fits
    always = plan(CONFIG, 4, replace(OPTIONS, sharding="always"), devices=2, memory=2**40, one_machine=True)
    assert (always.devices, always.memory) == (2, 2**39)
