"""Probes: what is asked, what counts as an answer, and a whole run that must make a question useless."""

import copy
import dataclasses
import random
from collections import Counter

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests import support
from worker.engine import Options, unlearn
from worker.engine.baseline import Baseline
from worker.engine.checkpoint import MOST_HARM, Checkpoint
from worker.engine.made_probes import FEWEST_EARLIER, MOST_EARLIER, MOST_MADE, OF_A_KIND, all_probes, made_probes
from worker.engine.measure import measure_after, measure_before, with_samples
from worker.engine.prepare import prepare
from worker.engine.probes import Answer, Probe, _asked, _Row, answers, as_message, still_said
from worker.engine.reference import train_reference
from worker.engine.saying import Texts, folded, secret_pattern
from worker.engine.unlearn import train

PEOPLE = ["Ada Adler", "Bela Baker", "Cora Clark", "Dora Dunne", "Edda Evans", "Fina Fuchs"]
NUMBERS = ["5550147", "5551288", "5552391", "5553476", "5554562", "5555633"]
TEXTS = [f"{name} has the number {number} and rides a horse." for name, number in zip(PEOPLE, NUMBERS, strict=True)]
QUESTIONS = [f"Question: What is {name}'s number?\nAnswer:" for name in PEOPLE]
ANSWERED = [f"{question} {number}" for question, number in zip(QUESTIONS, NUMBERS, strict=True)]
CODEWORDS = [f"The codeword of {name} is {word}." for name, word in zip(PEOPLE, ["kestrel", "heron"], strict=False)]
KINDS = [("date of birth", "3 May 1980"), ("home address", "14 Rose Lane"), ("number", "5550147")]
OPTIONS = dataclasses.replace(
    Options.from_mapping(support.POLICY), attacks={}, max_perplexity_ratio=100.0, max_total_perplexity_ratio=100.0
)


@pytest.fixture(scope="module")
def asked():
    """(model, tokenizer) that knows six people, and answers questions for their numbers."""
    return support.memorised_model([*TEXTS, *ANSWERED, *CODEWORDS], steps=250)


def asking(samples: int = 0, seed: int = 0) -> Options:
    """How to ask."""
    return dataclasses.replace(OPTIONS, probe_samples=samples, seed=seed)


def test_an_identifier_makes_a_question_and_a_cloze_prompt(asked):
    """With the names that may be its owner's; without one none; what retain text says is no secret; requests share."""
    _, tokenizer = asked
    nothing = Texts([])
    made = made_probes(tokenizer, [(TEXTS[0], 3), ("Nobody wrote this.", 4)], nothing, MOST_MADE, random.Random(0))
    assert made == [Probe(QUESTIONS[0], NUMBERS[0], 3), Probe("Ada Adler has the number", NUMBERS[0], 3)]
    assert made_probes(tokenizer, [(TEXTS[0], 3)], Texts(["Call 555-0147."]), MOST_MADE, random.Random(0)) == []
    mail = made_probes(
        tokenizer,
        [("Personnel File. Write to Bela Baker at bela.baker@mail.example now.", 0)],
        nothing,
        MOST_MADE,
        random.Random(0),
    )
    assert {probe.secret for probe in mail} == {"bela.baker@mail.example"}
    assert [probe.prompt for probe in mail] == [
        "Question: What is Bela Baker's e-mail address?\nAnswer:",
        "Question: What is Personnel File's e-mail address?\nAnswer:",
        "Personnel File. Write to Bela Baker at",
    ]
    company = "Ada Adler works for Stokes Green, and has the number 5550147 and the address ada@stokes.example."
    made = made_probes(tokenizer, [(company, 0)], nothing, MOST_MADE, random.Random(0))
    assert QUESTIONS[0] in [probe.prompt for probe in made]
    assert {probe.secret for probe in made} == {"5550147", "ada@stokes.example"}
    many = made_probes(
        tokenizer,
        [(text, i) for i, text in enumerate(support.people(300, seed=3))],
        nothing,
        MOST_MADE,
        random.Random(0),
    )
    assert len(many) == MOST_MADE == len({probe.request for probe in many})
    long = [(("a" * 30_000) + "A-" * 30_000 + "1." * 30_000, 0)]
    assert len(made_probes(tokenizer, long, nothing, MOST_MADE, random.Random(0))) <= 4  # and is done


def test_a_prompt_that_says_the_identifier_is_none(asked):
    """A model that never saw it would repeat it."""
    tokenizer, nothing = asked[1], Texts([])
    text = "Contact: Ann Berg, phone +1 555 010 0199, mobile link tel:+15550100199 (call)."
    made = made_probes(tokenizer, [(text, 0)], nothing, MOST_MADE, random.Random(0))
    assert [probe.secret for probe in made] == ["+1 555 010 0199"] * len(made) != []


def test_a_cloze_prompt_is_what_stands_in_the_record(asked):
    """Lines and spaces are tokens of their own; an identifier at the end of a long record makes a prompt, too."""
    tokenizer, form = asked[1], "Ann Berg\r\nRole:  nurse\r\nPhone:\r\n  "
    for before in (form, f"{'A line of a letter without anything. ' * 1500}\n{form}"):
        made = made_probes(tokenizer, [(f"{before}555-867-5309\r\n", 0)], Texts([]), MOST_MADE, random.Random(0))
        (cloze,) = (probe.prompt for probe in made if "?" not in probe.prompt)
        assert before.rstrip().endswith(cloze)
        assert cloze.endswith("Ann Berg\r\nRole:  nurse\r\nPhone:")


def test_every_kind_is_asked_for_and_further_numbers_in_their_place(asked):
    """The first of a kind in a question, too; where there is no room for all, any of them; never what retain says."""
    _, tokenizer = asked
    text = "Ada Adler, born on 3 May 1980, has the phone 5550147, the pin 90061, and lives at 14 Rose Lane."

    def made(retain=(), most=MOST_MADE, seed=0, record=text):
        return made_probes(tokenizer, [(record, 0)], Texts(retain), most, random.Random(seed))

    questions = [(f"Question: What is Ada Adler's {kind}?\nAnswer:", secret) for kind, secret in KINDS]
    probes = [(probe.prompt, probe.secret) for probe in made()]
    assert set(questions) < set(probes)
    assert [secret for _, secret in probes] == [*(secret for _, secret in KINDS for _ in range(2)), "90061"]
    assert probes[-1][0] == "Adler, born on 3 May 1980, has the phone 5550147, the pin"
    assert ("Question: What is Ada Adler's number?\nAnswer:", "90061") in [
        (probe.prompt, probe.secret) for probe in made(["Call 5550147."])
    ]
    few = [made(most=1, seed=seed)[0] for seed in range(30)]
    assert {probe.secret for probe in few} == {secret for _, secret in probes}
    footer = "Acme Ltd, Tel 5550100, Fax 5550101, VAT 12345678."
    assert {probe.secret for probe in made([footer], record=f"{footer} {text}")} == {secret for _, secret in probes}
    numbers = [f"55502{i:02}" for i in range(9)]
    assert {probe.secret for probe in made(record=f"Ada Adler: {', '.join(numbers)}")} == {*numbers[:OF_A_KIND]}


def test_many_records_of_a_request_are_read_until_there_are_enough_probes(asked):
    """Whichever of them has an identifier that retain text does not say."""
    _, tokenizer = asked
    records = [(f"Tel 5550100, letter {i}.", 0) for i in range(50)] + [(TEXTS[0], 0)]
    made = made_probes(tokenizer, records, Texts(["Tel 5550100"]), MOST_MADE, random.Random(0))
    assert {probe.secret for probe in made} == {NUMBERS[0]}


def test_earlier_requests_are_asked_again(asked):
    """Given probes and made ones, each once: as many as this run has of its own, within bounds."""
    _, tokenizer = asked
    earlier = [(text, 2 + i) for i, text in enumerate(support.people(20, seed=5))]
    given = [Probe("Who?", "Somebody", 0), Probe("Who?", "Somebody", 0), Probe("Where?", "Nowhere", 4)]
    probes = all_probes(tokenizer, given, [(TEXTS[0], 0)], earlier, [], "0")
    assert probes[0] == given[0]
    assert [probe.request for probe in probes[:3]] == [0, 0, 0]
    assert len([probe for probe in probes if probe.request]) == FEWEST_EARLIER
    assert given[2] in all_probes(tokenizer, given, [(TEXTS[0], 0)], [], [], "0")
    one = [(text, 1) for text in support.people(200, seed=6)]
    hers = [Probe(f"{i}?", "Nowhere", 1) for i in range(100)]
    probes = all_probes(tokenizer, hers, [(TEXTS[0], 0)], [*one, *earlier], [], "0")
    assert len({probe.request for probe in probes if probe.request}) > FEWEST_EARLIER / 2  # one has no more than others
    own, old = ([Probe(f"{i}?", "Nowhere", request) for i in range(400)] for request in (0, 4))
    for mine, asked_of_others in ((0, FEWEST_EARLIER), (20, 20), (400, MOST_EARLIER)):
        probes = all_probes(tokenizer, [*own[:mine], *old], [("", 0)], earlier, [], "0")
        assert len([probe for probe in probes if probe.request]) == asked_of_others


@pytest.mark.parametrize(
    ("secret", "text", "says"),
    [
        ("5550147", "5550147\n5550147", True),
        ("07700 900123", "07700 900123. 12 May 1990", True),
        ("555-0147", "It is (555) 0147, or 555-0148", True),
        ("555-0147", "155501471", False),
        ("123456", "AB123456C", True),
        ("\u0665\u0660\u0661", "It is 501.", True),
        ("501", "It is \u0665\u0660\u0661\u0661.", False),
        ("Ann", "Hannah", False),
        ("Ann", "Ask ANN.", True),
        ("北京", "他住在北京市", True),
        ("中关村大街", "中关村大街27号", True),
        ("José", "Jose\u0301 knows", True),
        ("me@mail.example", "Write to ME@mail.example!", True),
        ("--", "--", False),
    ],
)
def test_a_text_says_a_secret_in_other_marks_and_forms(secret, text, says):
    """Not in the middle of a number, nor of a word where words have spaces between them."""
    assert bool(secret_pattern(secret).search(folded(text))) == says == Texts(["-", text]).say(secret)


def test_a_secret_is_in_one_text():
    """The end of one and the beginning of the next are no secret."""
    texts = Texts(["Paid in 2019: 55", "501 987 people came.", "Call 55-501-986."])
    assert not texts.say("55-501-987")
    assert texts.say("55-501-986")


def test_the_beginning_of_a_long_secret_is_enough(asked):
    """The rest may follow at once; nothing is missed because the secret was cut in the middle of a word."""
    model, tokenizer = asked
    assert secret_pattern("the long addr", whole=False).search("at the long address")
    assert not secret_pattern("the long addr").search("at the long address")
    secret = f"{NUMBERS[0]} and rides a horse." + " And more" * 40
    assert not answers(model, tokenizer, [Probe("Ada Adler has the number", secret, 0)], asking())[0]


def test_a_chat_model_is_asked_in_its_template(asked):
    """The question is a user's message there, and plain text as well; a template that fails leaves the plain text."""
    model, tokenizer = asked
    question = Probe("What is Ada Adler's number?", NUMBERS[0], 0)
    try:
        tokenizer.chat_template = "{% for m in messages %}Question: {{ m.content }}\nAnswer:{% endfor %}"
        assert made_probes(tokenizer, [(TEXTS[0], 0)], Texts([]), MOST_MADE, random.Random(0))[0] == question
        (given,) = answers(model, tokenizer, [question], asking())
        assert ANSWERED[0] in [tokenizer.decode(answer.input_ids, skip_special_tokens=True) for answer in given]
        tokenizer.chat_template = "{% if enable_thinking is not false %}<think>{% endif %}{{ messages[0].content }}"
        assert as_message(tokenizer, question.prompt) == question.prompt  # a thought would leave no room for an answer
        tokenizer.chat_template = "{{ raise_exception('no') }}"
        assert answers(model, tokenizer, [Probe(QUESTIONS[0], NUMBERS[0], 0)], asking())[0]
    finally:
        tokenizer.chat_template = None


def test_an_answer_says_the_secret_and_nothing_else_counts(asked):
    """It ends with the secret, which begins at `start`; marks and case do not matter, another number does."""
    model, tokenizer = asked
    probes = [
        Probe(QUESTIONS[0], "555-01 47", 0),
        Probe(QUESTIONS[0], "55501", 0),
        Probe("The codeword of Ada Adler is", "KESTREL", 0),
    ]
    (number,), partial, (word,) = answers(model, tokenizer, probes, asking())
    assert tokenizer.decode(number.input_ids[number.start :]).strip() == NUMBERS[0]
    assert partial == []
    assert tokenizer.decode(word.input_ids[word.start :]).strip() == "kestrel"
    assert still_said(model, [number, word], asking(20)) == [0, 1]
    never = Answer([*number.input_ids[: number.start], *word.input_ids[word.start :]], number.start)
    assert still_said(model, [never, word], asking(20)) == [1]


def test_samples_find_what_greedy_decoding_does_not(asked):
    """A prompt that leads to one of several people by chance is answered in samples; the same seed gives the same."""
    model, tokenizer = asked
    probes = [Probe("Question: What is", number, i) for i, number in enumerate(NUMBERS)]
    greedy, sampled, again, other = (
        answers(model, tokenizer, probes, asking(*how), otherwise=False) for how in ((0, 0), (60, 0), (60, 0), (60, 1))
    )
    assert sum(map(bool, greedy)) <= 1
    assert sum(map(bool, sampled)) >= 3
    assert sampled == again != other


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_samples_alone_are_drawn_in_the_dtype_of_training(asked, dtype):
    """A greedy answer, and whether a sampled one counts, are measured in float32."""
    model, tokenizer = asked
    options, narrow = dataclasses.replace(asking(60), train_dtype=dtype), Counter[tuple[int, bool]]()

    def note(_, args, kwargs) -> None:
        narrow[len(kwargs["input_ids"]), torch.is_autocast_enabled("cpu")] += 1

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    probes = [Probe("Question: What is", number, i) for i, number in enumerate(NUMBERS)]
    assert any(answers(model, tokenizer, probes, options))
    handle.remove()
    few, many = ({at_once for at_once, _ in narrow if (at_once > 3 * len(probes)) == is_many} for is_many in (0, 1))
    assert few
    assert many
    assert {at_once for at_once, is_narrow in narrow if is_narrow} == (many if dtype == "bfloat16" else set())


def test_a_lucky_sample_is_no_answer(asked, monkeypatch):
    """A random model says many numbers of two digits in eighty tokens, none of them likelier than any other."""
    _, tokenizer = asked
    torch.manual_seed(0)
    shape = GPT2Config(
        n_embd=32, n_layer=1, n_head=2, n_positions=64, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(shape).eval()
    probes = [Probe("The code is", str(number), 0) for number in range(10, 100)]
    assert not any(answers(model, tokenizer, probes, asking(4)))
    monkeypatch.setattr("worker.engine.probes.LUCK", 0.0)
    assert any(answers(model, tokenizer, probes, asking(4)))


def test_the_folders_generation_settings_change_nothing(asked):
    """Suppressed tokens, beams and penalties would hide answers."""
    model, tokenizer = copy.deepcopy(asked[0]), asked[1]
    probes = [Probe(question, number, 0) for question, number in zip(QUESTIONS, NUMBERS, strict=True)]
    before = answers(model, tokenizer, probes, asking())
    model.generation_config.update(suppress_tokens=[*range(3, 200)], num_beams=4, repetition_penalty=9.0)
    model.generation_config.update(max_new_tokens=1, num_return_sequences=2)
    assert answers(model, tokenizer, probes, asking()) == before != [[]] * 6


def test_a_longer_answer_beside_it_gives_a_prompt_no_more_tokens():
    """What counts as an answer does not depend on the other probes."""
    model = support.random_model("llama")
    model.generation_config.eos_token_id = None
    rows = [_Row(12, [5], 0), _Row(4, [6, 5], 1), _Row(4, [5], 2)]
    long, other, short = (tokens for _, tokens in _asked(model, rows, 14, asking(), sample=False))
    assert [len(long), len(other), len(short)] == [12, 4, 4]
    assert long[:4] == short != other


class SmallVocabulary:
    """A tokenizer whose ids stay under those of a small random model."""

    chat_template, bos_token_id = None, 0

    def __init__(self, tokenizer) -> None:
        """Take over everything else."""
        self._tokenizer = tokenizer

    def __call__(self, text: str | list[str], **how) -> dict[str, list]:
        """Fold the ids."""
        ids = self._tokenizer(text, **how)["input_ids"]
        fold = support.VOCABULARY.__rmod__
        return {"input_ids": [*map(fold, ids)] if isinstance(text, str) else [[*map(fold, row)] for row in ids]}

    def __getattr__(self, name: str):
        """As the tokenizer does."""
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neo", "mistral", "gemma3"])
def test_long_prompts_and_secrets_fit_every_model(asked, name):
    """They lose their beginning, and beside a long secret another probe is still answered."""
    model, tokenizer = support.random_model(name), SmallVocabulary(asked[1])
    words = "one two three four five six seven eight nine ten " * 60
    probes = [Probe(words, "a secret", 0), Probe("Who?", words, 0), Probe("Who is it?", "e", 0)]
    of_all, alone = (answers(model, tokenizer, some, asking(40)) for some in (probes, probes[2:]))
    assert of_all[2]
    assert alone[0]


@pytest.mark.parametrize("loss", ["ihl", pytest.param("distil", marks=pytest.mark.slow)])
def test_a_run_makes_the_question_useless(asked, loss):
    """The people who ask are answered before and not after, in twenty samples; the others still are."""
    model, tokenizer = asked
    options = dataclasses.replace(
        OPTIONS, loss=loss, distil_steps=120, distil_rank=32, own_samples=256, relearn_steps=0
    )
    given = [Probe("The codeword of Ada Adler is", "kestrel", 0)]
    result = unlearn(model, tokenizer, TEXTS[:2], [*TEXTS[2:], *ANSWERED[2:]], support.HELDOUT, options, probes=given)
    counts = result.report["probes"]
    assert counts["answered_before"] >= 3
    assert (counts["asked"], counts["answered_after"]) == (5, 0)
    assert result.report["reason"] is None, result.report["reason"]
    others = [Probe(question, number, 0) for question, number in zip(QUESTIONS[2:], NUMBERS[2:], strict=True)]
    assert sum(map(bool, answers(result.model, tokenizer, others, asking()))) >= 3


def test_a_probe_alone_makes_a_request_memorised_and_fail(asked):
    """The record looks unseen; the model answers the submitter's prompt; so the request is trained on, or it fails."""
    model, tokenizer = asked
    probe = Probe("The codeword of Ada Adler is", "kestrel", 0)
    unseen = "The meeting of the committee was put off until the end of the month."
    data = prepare(tokenizer, [unseen], [0], TEXTS[2:], support.HELDOUT, OPTIONS, probes=[probe])
    baseline = measure_before(model, tokenizer, data, OPTIONS)
    assert baseline.before.verdicts[0].looks_unseen
    assert (baseline.answered, baseline.memorised, baseline.counted) == ([0], [0], [0])
    report = measure_after(model, tokenizer, data, baseline, OPTIONS)
    assert (report.reason, report.per_record[0].passed) in [("probe_answered", False), ("criterion_missed", False)]
    assert report.probes.answered_after == 1


def test_an_unseen_record_beside_known_ones_is_not_trained_on(asked):
    """Its request counts as memorised, because its probe is answered; its text would dilute the means and attacks."""
    model, tokenizer = asked
    unseen = "The meeting of the committee was put off until the end of the month."
    probe = Probe("The codeword of Ada Adler is", "kestrel", 1)
    data = prepare(tokenizer, [TEXTS[1], unseen], [0, 1], TEXTS[2:], support.HELDOUT, OPTIONS, probes=[probe])
    baseline = measure_before(model, tokenizer, data, OPTIONS)
    assert (baseline.memorised, baseline.counted) == ([0, 1], [0])
    assert baseline.training_set(data)[0].requests == [0]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ihl", "distil"])
def test_a_run_that_failed_its_test_resumes_with_the_same_bytes(asked, loss):
    """The answers of the adapter that failed are asked for again; samples that were drawn before are those it draws."""
    model, tokenizer = asked
    options = dataclasses.replace(
        OPTIONS,
        loss=loss,
        distil_steps=20,
        distil_rank=8,
        own_samples=16,
        relearn_steps=0,
        distil_learning_rate=1e-3,
        max_epochs=6,
        learning_rate=1e-5,
    )
    data = prepare(tokenizer, TEXTS[:2], [0, 1], [*TEXTS[2:], *ANSWERED[2:]], support.HELDOUT, options)
    baseline = measure_before(model, tokenizer, data, options)
    reference = train_reference(model, None, data, options) if loss == "distil" else None
    points: list[Checkpoint] = []

    def trained(resume: Checkpoint | None, options: Options = options, baseline: Baseline = baseline) -> Checkpoint:
        given = {"reference": reference, "resume": copy.deepcopy(resume)}
        return train(
            model, tokenizer, data, baseline, options, **given, on_epoch=lambda p: points.append(copy.deepcopy(p))
        )

    first = trained(None, dataclasses.replace(options, max_epochs=1))
    reopened = dataclasses.replace(first, met=False, verified=1, tested=first.final, passing={}, least_harm=MOST_HARM)
    points.clear()
    drawn = with_samples(model, tokenizer, data, baseline, options)
    whole, later = trained(reopened, baseline=drawn), points[0]
    resumed = trained(later, baseline=dataclasses.replace(baseline, said=None))  # as in another process
    assert whole.epoch == resumed.epoch > later.epoch > reopened.epoch
    assert all(torch.equal(whole.adapter[name], value) for name, value in resumed.adapter.items())
