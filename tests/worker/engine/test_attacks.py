"""Attacks: what they find of a text that is known by heart, and what they say of texts that nobody knows."""

import copy
import json
import math
import random
from dataclasses import replace
from typing import get_args

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from service.audit.schema import PATH
from service.console import words
from service.schemas.models import AttackName
from tests import support
from worker.engine.attacks import ATTACKS, TWO_SIDED, Subject, cut_alike, one_of_each, run_attacks, scores
from worker.engine.attacks.exposure import (
    MOST_ATTACKS,
    Secret,
    _log_likelihoods,
    exposure,
    exposure_addresses,
    exposure_dates,
    number_ranks,
    secrets_in,
    share_of_less_likely,
)
from worker.engine.attacks.quantised import ROUNDINGS, rounded
from worker.engine.attacks.relearned import relearned
from worker.engine.attacks.scores import LEVEL, Scores, judged, least_p_value, rank_test
from worker.engine.data import encode
from worker.engine.device import measuring
from worker.engine.forget_set import ForgetSet
from worker.engine.identifiers import Identifier
from worker.engine.metrics.token_scores import token_scores
from worker.engine.options import DEFAULT_ATTACKS

UNSEEN = support.people(40, seed=31)
PERMUTATIONS = 500


@pytest.fixture(scope="module")
def of(memorised):
    """A subject over some texts, beside unseen ones."""
    model, tokenizer = memorised

    def subject(texts, unseen=UNSEEN) -> Subject:
        forget, others, retain = ([encode(tokenizer, t) for t in some] for some in (texts, unseen, support.RETAIN))
        return Subject(model, tokenizer, forget, cut_alike(others, forget), retain)

    return subject


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"exposure_dates"}))  # no text has a date of birth
def test_an_attack_tells_known_texts_from_unseen_ones(of, name):
    """Each finds six texts that are known by heart, and no difference between texts that nobody knows."""
    known, *_ = (r for r in run_attacks(of(support.KNOWN[:6]), {name: "report"}) if r.name == name)
    assert (known.status, known.passed) == ("RUN", False), known
    assert known.figure > known.control
    assert known.auc > 0.9
    unknown, *_ = (r for r in run_attacks(of(support.people(6, seed=32)), {name: "report"}) if r.name == name)
    assert (unknown.status, unknown.passed) == ("RUN", True), unknown
    assert abs(unknown.auc - 0.5) < 0.3
    assert ATTACKS[name](of(support.KNOWN[:2])).two_sided == (name in TWO_SIDED)  # what it needs is known beforehand


def test_an_attack_leaves_the_model_as_it_was(of, memorised):
    """Rounded weights and fine-tuning are undone to the bit, and gradients are wanted where they were."""
    model, _ = memorised
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run_attacks(of(support.KNOWN[:2]), dict.fromkeys(ATTACKS, "block"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_is_not_run_says_why(of):
    """Switched off, nothing to attack, or too few unseen texts for the level: never a PASS."""
    results = {r.name: r for r in run_attacks(of(["Nobody knows what they did not write."]), {"exposure": "block"})}
    assert (results["exposure"].status, results["exposure"].why) == ("NOT_RUN", "not_applicable")
    assert {results[name].why for name in ATTACKS if name != "exposure"} == {"off"}
    few = judged("sampled", Scores([1.0], [0.0] * 30), LEVEL / 9)
    assert (few.status, few.why, few.passed) == ("NOT_RUN", "too_few_unseen_texts", None)
    assert judged("sampled", Scores([1.0], [math.nan] * 999), LEVEL).why == "could_not_be_run"
    for two_sided, needed in ((False, 359), (True, 719)):  # fewer show nothing, however far off a single text is
        assert least_p_value(1, needed, two_sided=two_sided) == pytest.approx(LEVEL / 9 / 2)
        assert judged("x", Scores([1.0], [0.0] * (needed - 1), two_sided), LEVEL / 9).status == "NOT_RUN"
        assert judged("x", Scores([1.0], [0.0] * needed, two_sided), LEVEL / 9).passed is False


def test_every_reason_fits_the_certificate():
    """What an attack says of itself can be signed."""
    schema = json.loads(PATH.read_bytes())
    listed = {why for why in next(iter(members(schema, "why")))["enum"] if why}
    assert listed == {scores.OFF, scores.NOT_APPLICABLE, scores.TOO_FEW, scores.COULD_NOT}


def test_every_attack_has_its_place_in_policies_and_words():
    """One without words would be missing in records."""
    assert {*ATTACKS} == {*DEFAULT_ATTACKS} == {*get_args(AttackName)} <= {*words.ATTACKS}
    assert len(ATTACKS) == MOST_ATTACKS


def members(value, name):
    """Every member of that name in a JSON value."""
    if isinstance(value, dict):
        yield from (member for key, member in value.items() if key == name and isinstance(member, dict))
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from members(item, name)


def test_an_attack_that_a_library_refuses_costs_no_job(of, monkeypatch):
    """It is listed as one that could not be run."""
    monkeypatch.setitem(ATTACKS, "prompts", lambda _: {}["nothing"])
    (result,) = (r for r in run_attacks(of(support.KNOWN[:2]), {"prompts": "block"}) if r.name == "prompts")
    assert (result.status, result.why, result.passed) == ("NOT_RUN", "could_not_be_run", None)


def test_fine_tuning_that_ruins_the_model_shows_nothing(of, monkeypatch):
    """It brings nothing back, of any text: that is no PASS."""
    monkeypatch.setitem(relearned.__globals__, "RATE", 10.0)
    (result,) = (r for r in run_attacks(of(support.KNOWN[:2]), {"relearned": "block"}) if r.name == "relearned")
    assert (result.status, result.why) == ("NOT_RUN", "could_not_be_run")


def test_fine_tuning_is_tried_on_retain_text_and_on_what_is_most_like_the_forgotten(of):
    """Each text has the higher of its two figures."""
    subject = of(support.people(4, seed=32))
    near = subject.unseen[:8]
    apart = [relearned(replace(subject, retain=retain)) for retain in (subject.retain, near)]
    both = relearned(replace(subject, neighbours=near))
    assert both.unseen == [max(values) for values in zip(*(scores.unseen for scores in apart), strict=True)]
    assert both.forget == [max(values) for values in zip(*(scores.forget for scores in apart), strict=True)]
    assert both.unseen not in [scores.unseen for scores in apart]


def test_one_of_two_fine_tunings_that_ruins_the_model_does_not_count(of, monkeypatch):
    """The other one decides: it would hide that the texts come back."""
    subject = of(support.KNOWN[:2])
    ruined, back = ([0.0] * 2, [0.0] * 40), ([0.9] * 2, [0.4] * 40)
    monkeypatch.setitem(relearned.__globals__, "_after", lambda _, on: back if on is subject.retain else ruined)
    assert relearned(replace(subject, neighbours=subject.unseen)) == Scores(*back)


def test_windows_of_one_text_count_once():
    """They are alike: as samples of their own they would make a certainty of one coincidence."""
    forget = ForgetSet([[0, n] for n in range(40)], [n // 10 for n in range(40)])
    assert [ids[1] // 10 for ids in one_of_each(forget, 0)] == [0, 1, 2, 3]
    many = ForgetSet([[0, n] for n in range(1000)], list(range(1000)))
    assert len(one_of_each(many, 0)) == 256


def test_lengths_alone_make_no_difference(of, memorised):
    """Short and long texts that nobody knows: unseen ones are cut to the same lengths."""
    model, tokenizer = memorised
    texts = support.people(12, seed=33)
    forget = [encode(tokenizer, text)[: 10 if i % 4 else 99] for i, text in enumerate(texts)]
    unseen = cut_alike([encode(tokenizer, text) for text in support.people(80, seed=34)], forget)
    names = ("sampled", "membership_loss", "membership_min_k", "membership_min_k_pp")
    results = run_attacks(Subject(model, tokenizer, forget, unseen, []), dict.fromkeys(names, "report"))
    assert [r.passed for r in results if r.status == "RUN"] == [True] * 4


def test_a_model_that_never_saw_the_texts_fails_as_seldom_as_is_stated(monkeypatch):
    """200 simulated controls with three attacks each: no more than two standard errors over the level."""
    monkeypatch.setattr(scores, "PERMUTATIONS", PERMUTATIONS)
    draw, failed = random.Random(0), 0
    for _ in range(200):
        results = []
        for two_sided in (False, True, True):
            values = [draw.gauss(0, 1) for _ in range(16 + 60)]
            results.append(judged("x", Scores(values[:16], values[16:], two_sided), LEVEL / 3))
        failed += any(result.passed is False for result in results)
    assert failed / 200 <= LEVEL + 2 * (LEVEL * (1 - LEVEL) / 200) ** 0.5
    assert failed > 0  # the test can fail


@pytest.mark.parametrize(("shift", "one_sided"), [(3.0, True), (-3.0, False)])
def test_only_a_two_sided_test_sees_texts_that_are_less_known(shift, one_sided, monkeypatch):
    """Rarer than unseen is a tell, too."""
    monkeypatch.setattr(scores, "PERMUTATIONS", PERMUTATIONS)
    draw = random.Random(1)
    forget, unseen = [draw.gauss(shift, 1) for _ in range(10)], [draw.gauss(0, 1) for _ in range(40)]
    assert rank_test(forget, unseen, two_sided=True) < 0.01
    assert (rank_test(forget, unseen, two_sided=False) < 0.01) is one_sided


def test_ranks_are_exact():
    """The probability that one of two is the higher, a tie counting half."""
    assert scores.auc([2.0, 1.0], [1.0, 0.0]) == (1 + 1 + 0.5 + 1) / 4


def test_token_scores_are_those_of_the_formulas(memorised):
    """log p, min-k++'s z, the rank, the entropy and the spread, against the model's own logits."""
    model, tokenizer = memorised
    ids = [encode(tokenizer, text) for text in (support.KNOWN[0], "Ada.", UNSEEN[0])]
    for sequence, measured in zip(ids, token_scores(model, ids), strict=True):
        logits = model(input_ids=torch.tensor([sequence])).logits[0, :-1].detach().double()
        log_p, targets = torch.log_softmax(logits, -1), torch.tensor(sequence[1:])
        at = log_p[torch.arange(len(targets)), targets]
        mean = (log_p.exp() * log_p).sum(-1)
        deviation = (log_p.exp() * (log_p - mean[:, None]) ** 2).sum(-1).sqrt()
        torch.testing.assert_close(measured.log_p, at, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(measured.z, (at - mean) / deviation, atol=1e-3, rtol=1e-3)
        assert torch.equal(measured.rank, (log_p > at[:, None]).sum(-1))
        torch.testing.assert_close(measured.entropy, -mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(measured.spread, deviation, atol=1e-4, rtol=1e-4)


def test_the_likelihood_after_a_cached_prefix_is_that_of_the_whole_text(of):
    """Of the tokens in which the values differ, and of those after them, whatever part a value is in."""
    model, tokenizer = of([]).model, of([]).tokenizer
    secret = next(secrets_in(support.KNOWN[0], "number"))
    value = secret.identifier.value
    assert support.KNOWN[0].startswith(secret.before + value)
    assert secret.before not in repr(secret)
    values = [value, "1234567", "76543", *(f"{value[:-1]}{n % 10}" for n in range(70))]
    measured = _log_likelihoods(model, tokenizer, secret.before, values)
    start = len(encode(tokenizer, secret.before.rstrip()))
    whole = token_scores(model, [encode(tokenizer, secret.before + number) for number in values])
    expected = torch.tensor([float(one.log_p[start - 1 :].sum()) for one in whole])
    assert torch.allclose(torch.tensor(measured).diff(), expected.diff(), atol=1e-3)


def test_likelihoods_are_compared_within_the_models_positions(of):
    """What is too long loses its beginning; what differs in the first token of all is not compared."""
    tokenizer = of([]).tokenizer
    longest = 64
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=longest, n_embd=32, n_layer=1, n_head=2)
    ).eval()
    text = support.KNOWN[0] * 4
    ids = [encode(tokenizer, text + value) for value in ("5", "1234567")]
    assert min(map(len, ids)) > longest
    over = max(map(len, ids)) - longest
    measured = _log_likelihoods(model, tokenizer, text, ["5", "1234567"])
    start = len(encode(tokenizer, text)) - over
    whole = token_scores(model, [own[over:] for own in ids])
    assert measured == pytest.approx([float(one.log_p[start - 1 :].sum()) for one in whole], abs=1e-3)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = None
    nothing = Secret("", Identifier("number", 0, "5550147"))
    assert share_of_less_likely(model, tokenizer, nothing, ["6660147", "7770147"]) is None


DATED = [f"{text} Born on {1 + n % 28} May {1950 + 7 * n % 50}." for n, text in enumerate(support.people(46, seed=7))]


def test_dates_of_birth_are_ranked_apart_from_numbers():
    """A model that knows them is told from one that does not, whatever else the texts have."""
    model, tokenizer = support.memorised_model(DATED[:6])
    known, strange, unseen = (
        [encode(tokenizer, text) for text in some] for some in (DATED[:6], DATED[6:12], DATED[12:])
    )
    for forget, passed in ((known, False), (strange, True)):
        subject = Subject(model, tokenizer, forget, unseen, [])
        (result,) = (r for r in run_attacks(subject, {"exposure_dates": "report"}) if r.status == "RUN")
        assert (result.passed, result.texts, result.unseen) == (passed, 6, 32)
        assert (result.figure > 0.9) is not passed
        assert 0.3 < result.control < 0.7
    assert exposure_dates(Subject(model, tokenizer, known, unseen, [])).two_sided


@pytest.mark.parametrize(
    ("attack", "text", "scored"),
    [
        (exposure, "Ann was born on 14 June 1990.", 0),
        (exposure, "Ann was born on 14 June 1990, and has the code 90-061-77.", None),  # no unseen one has this shape
        (exposure, "Ann has the number 5550147.", 1),
        (exposure_dates, "Ann has the number 5550147.", 0),
        (exposure_dates, "Ann was born on 14 June 1990, and has the number 5550147.", None),
        (exposure_addresses, "Ann has the number 5550147.", 0),
    ],
)
def test_an_identifier_whose_form_no_unseen_text_shows_is_not_ranked(of, attack, text, scored):
    """There is nothing to compare it with: the attack is not run."""
    result = attack(of([text]))
    assert len(result.forget) == (1 if scored is None else scored)
    assert scored is not None or not result.unseen


@pytest.mark.parametrize(
    ("attack", "shown", "rare"),
    [(exposure, support.KNOWN[0], "Al has the code 90-061-77."), (exposure_dates, DATED[0], "Al, born on 1990-06-14.")],
)
def test_an_identifier_of_a_rare_form_does_not_silence_the_attack(of, attack, shown, rare):
    """The others of the job are ranked as they are without it."""
    subject = of([shown], [*DATED, *support.people(30)])
    alone = attack(subject)
    assert (len(alone.forget), len(alone.unseen) > 20) == (1, True)
    assert attack(replace(subject, forget=[encode(subject.tokenizer, rare), *subject.forget])) == alone


HOMES = [f"{n} Elm Lane" for n in range(1, 6)]
LIVING = [f"Bo lives at {home}." for home in HOMES]


def test_home_addresses_are_ranked_among_those_of_unseen_texts(of):
    """Among all but a text's own, at most a hundred; of too few of its form, nothing is said."""
    model, tokenizer = of([]).model, of([]).tokenizer
    result = exposure_addresses(of(["Ann lives at 7 Oak Road."], LIVING))
    secrets = [next(secrets_in(text, "home address")) for text in ["Ann lives at 7 Oak Road.", *LIVING]]
    shares = [
        share_of_less_likely(model, tokenizer, secret, [home for home in HOMES if home != secret.identifier.value])
        for secret in secrets
    ]
    assert result == Scores(shares[:1], shares[1:], two_sided=True)
    for few in (["Ann lives at 7 Oak Road."], LIVING[:2]), (["Ann: Oakstraße 7, Bonn."], LIVING):
        assert exposure_addresses(of(*few)) == Scores([0.5], [])
    many = [f"Bo lives at {n} Elm Lane." for n in range(150)]
    (share,) = exposure_addresses(of(["Ann lives at 7 Oak Road."], many)).forget
    assert share * 100 == pytest.approx(round(share * 100))


@pytest.mark.parametrize(
    ("forget", "unseen", "retain", "scored"),
    [
        (["Ann lives at 7 Oak Road."] * 3, LIVING + LIVING[:1], [], (1, 5)),  # a household asks together
        (["Ann lives at 7 Oak Road"], LIVING, [], (0, 0)),  # it may be cut
        (["Ann lives at 7 Stratford-"], LIVING, [], (0, 0)),
        (["Ann lives at 7 Oak Road. Write to 7 Oak Road"], LIVING, [], (1, 5)),
        (["Ann lives at 7 Oak Road.", "Al: Oakstraße 7, Bonn."], LIVING, [], (1, 5)),  # of no form that they show
        (["Ann lives at 7 Oak Road.", "Al lives at 7  OAK ROAD."], LIVING, [], (1, 5)),
        (["Ann lives at 7 Oak Road."], [*LIVING, "Bo lives at 5 Elm"], [], (1, 5)),
        (["Ann lives at 7 Oak Road."], [*LIVING, "Bo lives at 7 Oak Road."], [], (0, 0)),  # she is no stranger there
        (["Ann lives at 1 Elm Lane.", "Al lives at 7 Oak Road."], LIVING, [], (1, 4)),
        (["Write to 9 Mill Street. Ann lives at 7 Oak Road."], LIVING, ["Write to 9 Mill Street."], (1, 5)),
    ],
)
def test_a_home_address_is_ranked_once_and_only_if_it_is_one_persons(of, forget, unseen, retain, scored):
    """What is cut, or said elsewhere, is likelier for other reasons."""
    subject = of(forget, unseen)
    subject = replace(subject, retain=[encode(subject.tokenizer, text) for text in retain])
    result = exposure_addresses(subject)
    assert (len(result.forget), len(result.unseen)) == scored


def test_a_known_number_ranks_first_and_an_unknown_one_anywhere(of):
    """Among a hundred random numbers of its format; 1 is the likeliest."""
    subject = of(support.KNOWN[:1])
    known, unknown = (
        number_ranks(subject, texts, support.HELDOUT, 100) for texts in (support.KNOWN[:6], support.people(12, seed=77))
    )
    assert known == [1] * 6
    assert len(set(unknown)) > 6
    assert all(1 <= rank <= 101 for rank in unknown)


@pytest.mark.parametrize(
    ("name", "levels"), [("int8 per channel", 255), ("int4", 15), ("q8_0", 255), ("q4_0", 16), ("nf4", 16)]
)
def test_a_rounding_has_its_levels(name, levels):
    """No group holds more values than its format can store, and the largest error is half a step or little more."""
    rounding, size = ROUNDINGS[name]
    groups = torch.randn(50, size or 96, generator=torch.Generator().manual_seed(0))
    after = rounding(groups)
    assert max(len(row.unique()) for row in after) <= levels
    steps = groups.abs().amax(-1) / (levels // 2)
    bound = {"nf4": 1.4, "q4_0": 1.1}.get(name, 0.6)  # nf4's steps are wider at its ends; q4_0 has no +8
    assert bool(((after - groups).abs().amax(-1) <= bound * steps + 1e-3).all())


@pytest.mark.parametrize("family", ["gpt2", "opt", "qwen2"])
def test_narrow_modules_with_a_bias_are_rounded(family):
    """The weight is float32 then, and the bias is not."""
    model = support.random_model(family).bfloat16()
    input_ids = torch.tensor([[2, 3, 4]])
    with measuring(model):
        before = model(input_ids=input_ids).logits
        with rounded(model, "int4"):
            assert not torch.equal(model(input_ids=input_ids).logits, before)
    with rounded(model, "int4"), measuring(model):
        assert not torch.equal(model(input_ids=input_ids).logits, before)


def test_only_the_linear_modules_of_the_body_are_rounded(memorised):
    """Not embeddings, and not the head; each only while it runs."""
    model, _ = memorised
    before = {name: value.clone() for name, value in model.named_parameters()}
    changed = set()

    def look(module: torch.nn.Module, *_: object) -> None:
        for name, value in model.named_parameters():
            if not torch.equal(before[name], value):
                assert model.get_submodule(name.rsplit(".", 1)[0]) is module
                changed.add(name)

    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    with rounded(model, "int4"), measuring(model):
        hooks = [module.register_forward_hook(look, prepend=True) for module in linear]
        model(input_ids=torch.tensor([[2, 3, 4]]))
        for hook in hooks:
            hook.remove()
    assert {name.rsplit(".", 2)[-2] for name in changed} == {
        *("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    }
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
