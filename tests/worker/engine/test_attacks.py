"""Attacks: what they find of a text that is known by heart, and what they say of texts that nobody knows."""

import copy
import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from service.audit import attack_problems
from service.audit.certificate import MANDATORY_ATTACKS
from service.audit.schema import PATH
from service.console import words
from service.domain import attacks
from service.domain.attacks import ATTACK_NAMES, MAY_NOT_APPLY
from tests import support
from worker.engine.attacks import ATTACKS, OF_EVERY_TEXT, TWO_SIDED, run_attacks, scores
from worker.engine.attacks.exposure import MOST_ATTACKS
from worker.engine.attacks.prompts import PROMPTS, _changed, _middle
from worker.engine.attacks.quantised import ROUNDINGS, rounded
from worker.engine.attacks.relearned import relearned
from worker.engine.attacks.scores import LEVEL, Scores, judged, least_p_value, rank_test
from worker.engine.attacks.subject import Subject, alike, cut_alike, windows_of_each
from worker.engine.data import encode
from worker.engine.device import measuring
from worker.engine.forget_set import ForgetSet
from worker.engine.metrics.token_scores import token_scores
from worker.engine.options import DEFAULT_ATTACKS
from worker.engine.progress import no_progress
from worker.engine.wordings import fixed_parts

PERMUTATIONS = 500


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"exposure_dates", "exposure_emails"}))  # no text has these
def test_an_attack_tells_known_texts_from_unseen_ones(of, name):
    """Each finds six texts that are known by heart, and no difference between texts that nobody knows."""
    known, *_ = (r for r in run_attacks(of(support.KNOWN[:6]), {name: "report"}) if r.name == name)
    assert (known.status, known.passed) == ("RUN", False), known
    assert known.figure > known.control
    assert known.auc > 0.9
    unknown, *_ = (r for r in run_attacks(of(support.people(6, seed=32)), {name: "report"}) if r.name == name)
    assert (unknown.status, unknown.passed) == ("RUN", True), unknown
    assert abs(unknown.auc - 0.5) < 0.3
    two_sided = ATTACKS[name](of(support.KNOWN[:2]), no_progress).two_sided
    assert two_sided == (name in TWO_SIDED)  # what it needs is known beforehand


def test_an_attack_leaves_the_model_as_it_was(of, memorised):
    """Rounded weights and fine-tuning are undone to the bit, and gradients are wanted where they were."""
    model, _ = memorised
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run_attacks(of(support.KNOWN[:2]), dict.fromkeys(ATTACKS, "block"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("text", ["Name:\tHannah\nPhone:\t5550147", "渡辺直美の電話番号は5550147です"])
def test_other_prompts_need_no_spaces(of, text):
    """Columns, lines, and scripts without spaces: a strange text before the first half is another prompt."""
    subject = of([text])
    assert ATTACKS["prompts"](subject, no_progress).forget
    known = subject.texts()[0][0]
    middle = _middle(known)
    assert 0 < middle < len(known)


def test_what_is_not_run_says_why(of):
    """Switched off, nothing to attack, or too few unseen texts for the level: never a PASS."""
    policy = DEFAULT_ATTACKS | {"relearned": "off"}
    results = {r.name: r for r in run_attacks(of(["Nobody"]), policy)}  # no number
    left_out = {name for name, result in results.items() if result.why == "not_applicable"}
    assert left_out == {*MAY_NOT_APPLY} - {"prompts"}
    assert {name for name, result in results.items() if result.why == "off"} == {"relearned"}
    assert {result.status for result in results.values() if result.why} == {"NOT_RUN"}
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
    assert {*ATTACKS} == {*DEFAULT_ATTACKS} == {*ATTACK_NAMES} <= {*words.ATTACKS}
    assert {*TWO_SIDED} == attacks.TWO_SIDED
    assert {*OF_EVERY_TEXT} == {*ATTACK_NAMES} - MAY_NOT_APPLY
    (rows,) = members(json.loads(PATH.read_bytes()), "attacks")
    assert [*MANDATORY_ATTACKS, *ATTACK_NAMES] == rows["items"]["properties"]["name"]["enum"]
    assert (float(attack_problems.LEVEL), attack_problems.FEWEST_UNSEEN) == (LEVEL, scores.FEWEST_UNSEEN)
    assert len(ATTACKS) == MOST_ATTACKS


def members(value, name):
    """Every member of that name in a JSON value."""
    if isinstance(value, dict):
        yield from (member for key, member in value.items() if key == name and isinstance(member, dict))
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from members(item, name)


@pytest.mark.parametrize("name", ["sampled", "exposure", "prompts", "quantised", "relearned"])
def test_an_attack_says_how_far_it_is(of, name):
    """One that is silent for long would look stuck, and its job be given up."""
    fractions: list[float] = []
    run_attacks(of(support.KNOWN[:3]), {name: "report"}, lambda fraction: fractions.append(round(fraction, 9)))
    assert fractions == sorted(fractions)
    place = [*ATTACKS].index(name) / len(ATTACKS)
    assert len([fraction for fraction in fractions if place < fraction < place + 1 / len(ATTACKS)]) >= 2


def test_an_attack_that_can_show_nothing_is_not_made(of, monkeypatch):
    """One text beside thirty: no score, however high, would be seen at this level."""
    monkeypatch.setitem(ATTACKS, "relearned", lambda *_: {}["nothing"])
    for unseen in (support.UNSEEN[:30], []):
        (result,) = (r for r in run_attacks(of(support.KNOWN[:1], unseen), {"relearned": "block"}) if r.why != "off")
        assert (result.status, result.why) == ("NOT_RUN", "too_few_unseen_texts")


def test_leakage_is_that_of_a_thousand_samples(of):
    """For each span of ten tokens the chance that one of them says it; the mean over the spans."""
    subject = of(support.people(4, seed=32))
    for value, score in zip(ATTACKS["sampled"](subject, no_progress).forget, subject.scores()[0], strict=True):
        p = score.log_p.exp().tolist()
        spans = [math.prod(p[at : at + 10]) for at in range(len(p) - 9)]
        assert value == pytest.approx(sum(1 - (1 - span) ** 1000 for span in spans) / len(spans), abs=1e-9)
        assert value > 0


def test_other_prompts_are_what_they_are_named_after(of, memorised):
    """The parts of a chat template stay. A text's share is that of the most successful one."""
    text = "<|im_start|>user\nPlease Write Something about Ada Lovelace and her many papers<|im_end|>"
    tokenizer = copy.deepcopy(memorised[1])
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    changed = {name: _changed(text, name, fixed_parts(tokenizer)) for name in PROMPTS}
    assert changed["lower case"] == text[:17] + text[17:].lower()
    words, typed = text[17:-10].split(" "), changed["typing error"][17:-10].split(" ")
    assert [*map(sorted, words)] == [*map(sorted, typed)]
    assert [one != other for one, other in zip(words, typed, strict=True)] == [i in (0, 8) for i in range(len(words))]
    assert changed["last five words"] == "Lovelace and her many papers<|im_end|>"
    assert changed["last ten words"] == text  # it has no more
    assert changed["without small words"] == text.replace(" and her", "")
    assert changed["after another text"].endswith(f". {text}")

    def share(prompt: str, rest: str) -> float:
        target = memorised[1](rest, add_special_tokens=False)["input_ids"]
        (ids,) = token_scores(memorised[0], [encode(memorised[1], prompt) + target])
        return float((ids.rank[-len(target) :] == 0).double().mean())

    subject = of(support.KNOWN[:2])
    for value, known in zip(ATTACKS["prompts"](subject, no_progress).forget, subject.texts()[0], strict=True):
        words = known.split(" ")
        first, rest = " ".join(words[: len(words) // 2]), " " + " ".join(words[len(words) // 2 :])
        each = [share(prompt, rest) for prompt in {way(first) for way in PROMPTS.values()} - {first}]
        assert value == max(each) > min(each)


def test_a_prompt_of_which_nothing_is_left_is_no_prompt(of):
    """A note has no small words; one token after nothing has no score."""
    subject = of(["my cat"])
    subject = replace(subject, tokenizer=copy.deepcopy(subject.tokenizer))
    subject.tokenizer.bos_token = None
    assert _changed("my", "without small words", None) == ""
    assert all(map(math.isfinite, ATTACKS["prompts"](subject, no_progress).forget))


def test_an_attack_that_a_library_refuses_costs_no_job(of, monkeypatch):
    """It is listed as one that could not be run."""
    monkeypatch.setitem(ATTACKS, "prompts", lambda *_: {}["nothing"])
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
    monkeypatch.setitem(
        relearned.__globals__, "_after", lambda _, on, progress: back if on is subject.retain else ruined
    )
    assert relearned(replace(subject, neighbours=subject.unseen)) == Scores(*back)


def test_windows_of_one_text_count_once():
    """They are alike: as samples of their own they would make a certainty of one coincidence."""
    forget = ForgetSet([[0, n] for n in range(40)], [n // 10 for n in range(40)])
    assert [windows[0][1] // 10 for windows in windows_of_each(forget, 0)] == [0, 1, 2, 3]
    assert {len(windows) for windows in windows_of_each(forget, 0)} == {10}
    many = ForgetSet([[0, n] for n in range(1000)], list(range(1000)))
    assert len(windows_of_each(many, 0)) == 256


def test_lengths_alone_make_no_difference(of, memorised):
    """Short and long texts that nobody knows: unseen ones are cut to the same lengths."""
    model, tokenizer = memorised
    texts = support.people(12, seed=33)
    forget = [encode(tokenizer, text)[: 10 if i % 4 else 99] for i, text in enumerate(texts)]
    unseen = cut_alike([encode(tokenizer, text) for text in support.people(80, seed=34)], forget)
    names = ("sampled", "membership_loss", "membership_min_k", "membership_min_k_pp")
    results = run_attacks(Subject(model, tokenizer, forget, unseen, []), dict.fromkeys(names, "report"))
    assert [r.passed for r in results if r.status == "RUN"] == [True] * 4


def test_unseen_texts_have_the_lengths_of_those_to_forget_as_often():
    """Their scores are those of their lengths. Where too many are short, the texts to forget are cut."""

    def texts(*sizes: tuple[int, int]) -> list[list[int]]:
        return [[0] * size for size, count in sizes for _ in range(count)]

    forget = texts((200, 28), (60, 4))
    same, unseen = alike(texts((60, 72), (200, 24)), forget, 20)
    lengths = Counter(map(len, unseen))
    assert (same, lengths[200]) == (forget, 24)
    assert 1 <= lengths[60] <= 8
    cut, unseen = alike(texts((200, 100), (120, 800)), texts((200, 1)), 799)
    assert (cut, {*map(len, unseen)}, len(unseen)) == (texts((120, 1)), {120}, 900)
    cut, unseen = alike(texts((200, 100), (60, 800)), texts((200, 1)), 799)  # of a record so short nothing is said
    assert (cut, unseen) == (texts((200, 1)), texts((200, 100)))
    assert alike(texts((60, 50)), texts((100, 3), (65, 1)), 0)[0] == texts((60, 3), (65, 1))
    assert alike(texts((30, 50)), texts((100, 3)), 0) == (texts((100, 3)), [])
    assert alike([], texts((9, 2)), 20) == (texts((9, 2)), [])
    assert alike(texts((9, 30)), [], 0)[0] == []


def test_a_model_that_never_saw_the_texts_fails_as_seldom_as_is_stated(monkeypatch):
    """200 simulated controls with three attacks each: no more than two standard errors over the level."""
    monkeypatch.setattr(scores, "PERMUTATIONS", PERMUTATIONS)
    draw, failed = random.Random(0), 0
    control = Subject(None, None, [[0]] * 16, [[0]] * 60, [])

    def simulated(subject: Subject, two_sided: bool) -> Scores:
        values = [draw.gauss(0, 1) for _ in [*subject.forget, *subject.unseen]]
        return Scores(values[:16], values[16:], two_sided)

    names = ("sampled", "membership_loss", "membership_min_k")
    for name in names:
        monkeypatch.setitem(ATTACKS, name, lambda subject, _, of=name: simulated(subject, of in TWO_SIDED))
    for _ in range(200):
        results = [r for r in run_attacks(control, dict.fromkeys(names, "report")) if r.why != "off"]
        assert [result.level for result in results] == [LEVEL / 3] * 3
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


def test_a_few_of_many_that_are_known_very_well_are_seen(monkeypatch):
    """Five of sixteen people whose number ranks first, the others anywhere: by ranks alone most such runs pass."""
    monkeypatch.setattr(scores, "PERMUTATIONS", 4000)
    draw, level, passed = random.Random(0), LEVEL / MOST_ATTACKS, 0
    for known in (0, 5) * 10:
        forget, unseen = ([round(draw.random(), 2) for _ in range(size)] for size in (16, 64))
        p_value = rank_test([1.0] * known + forget[known:], unseen, two_sided=True)
        passed += (p_value >= level) == (known == 0)
    assert passed >= 18


@pytest.mark.parametrize(("forget", "unseen"), [(1, 959), (2, 64), (3, 20), (4, 64)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_least_p_value_is_that_of_texts_beyond_all_others_in_either_direction(forget, unseen, sign):
    """Few texts that are all rarer than any unseen one are told apart as well as those that are all better known."""
    others = [float(n) for n in range(unseen)]
    p_value = rank_test([sign * 1e6 + n for n in range(forget)], others, two_sided=True)
    least = least_p_value(forget, unseen, two_sided=True)
    assert abs(p_value - least) < 4 * (least / scores.PERMUTATIONS) ** 0.5 + 2 / scores.PERMUTATIONS
    assert p_value < LEVEL / MOST_ATTACKS


def test_ranks_are_exact():
    """The probability that one of two is the higher, a tie counting half."""
    assert scores.auc([2.0, 1.0], [1.0, 0.0]) == (1 + 1 + 0.5 + 1) / 4


def test_token_scores_are_those_of_the_formulas(memorised):
    """log p, min-k++'s z, the rank, the entropy and the spread, against the model's own logits."""
    model, tokenizer = memorised
    ids = [encode(tokenizer, text) for text in (support.KNOWN[0], "Ada.", support.UNSEEN[0])]
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
