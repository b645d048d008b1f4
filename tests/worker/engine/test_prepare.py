"""Which texts a run works on, and which requests would leave it too few."""

from dataclasses import replace

import pytest

from tests import support
from worker.engine.criterion import MIN_HELDOUT
from worker.engine.data import encode
from worker.engine.errors import TooFewTexts
from worker.engine.forget_set import ForgetSet
from worker.engine.options import Options
from worker.engine.prepare import KINDS, prepare
from worker.engine.probes import Probe
from worker.engine.samples import RetainSampler
from worker.engine.unfit import Unfit, unfit_requests

OPTIONS = Options(sequence_length=64)
FIT = Unfit({}, [])
GENERIC = [f"{name} pays" for name in support.FIRST[:10]]  # each stands in a tenth of the next texts
PAYMENTS = [f"{text} {number} pounds" for text in GENERIC for number in range(6)]


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of the texts of this module."""
    return support.train_tokenizer([*support.RETAIN, *support.HELDOUT, *PAYMENTS])


def test_retain_sampling_depends_on_seed_and_epoch_alone():
    """A resumed run draws what the uninterrupted one drew."""
    tokenizer = support.train_tokenizer(support.RETAIN)
    first, second = (RetainSampler(tokenizer, support.RETAIN, 32, 3) for _ in range(2))
    first.start_epoch(1)
    first.sample(5)
    first.start_epoch(2)
    second.start_epoch(2)
    assert first.sample(9) == second.sample(9)
    assert all(len(ids) <= 32 for ids in second.sample(20))


def test_a_request_that_would_spoil_the_run_is_named_with_its_reason():
    """A text of common words, an over-long one, and one of nothing; a person's text in few reference texts is fine."""
    tokenizer = support.train_tokenizer([*support.RETAIN, *support.HELDOUT])
    texts = ["has the number", support.KNOWN[0] * 40, "", support.HELDOUT[0], support.KNOWN[1], "owes"]
    options = Options(sequence_length=64, max_request_sequences=8)
    unfit = unfit_requests(tokenizer, texts, [0, 1, 2, 3, 4, 0], support.RETAIN, support.HELDOUT, options)
    assert unfit == Unfit({0: "too_generic", 1: "too_long", 2: "too_short"}, [])


@pytest.mark.parametrize("file", ["retain", "heldout"])
def test_generic_requests_one_after_the_other_leave_enough_for_an_honest_one(tokenizer, file):
    """Each is fit alone. Those that completed reject nobody, and leave out half of a file at most."""
    retain, heldout = (PAYMENTS, support.HELDOUT) if file == "retain" else (support.RETAIN, PAYMENTS)
    honest = [support.KNOWN[0], PAYMENTS[-1]]
    for text in (*GENERIC, *honest):
        assert unfit_requests(tokenizer, [text], [0], retain, heldout, OPTIONS) == FIT
    forget = (tokenizer, honest, [0, 1], retain, heldout, OPTIONS)
    data = prepare(*forget, earlier_texts=GENERIC, earlier_request_ids=range(2, 12))
    left_out = data.retain_excluded if file == "retain" else data.heldout_excluded
    assert 24 <= left_out <= len(PAYMENTS) / 2


def test_people_whose_own_texts_stand_in_a_file_are_no_generic_requests(tokenizer):
    """Each leaves out one text, also after a quarter was left out. A fragment that they all share leaves out more."""
    people, others = support.HELDOUT[:40], support.HELDOUT[40:]
    run = (tokenizer, people, range(40), support.HELDOUT, support.people(60, seed=7), OPTIONS)
    assert unfit_requests(*run) == FIT
    fragments = ["Street has the number", *people[30:]]
    run = (tokenizer, fragments, [0] * len(fragments), support.HELDOUT, others, OPTIONS)
    assert unfit_requests(*run) == Unfit({0: "too_generic"}, [])


def test_one_request_of_many_rare_words_does_not_use_the_file_up(tokenizer):
    """Each of them stands in one reference text alone, of which it is a small part: the sum is too generic."""
    rare = [text.split(" has ")[0] for text in support.HELDOUT[:40]]  # "Ada Adler of 12 Oak Street"
    texts = [*rare, support.HELDOUT[50]]
    run = (tokenizer, texts, [0] * 40 + [1], support.RETAIN, support.HELDOUT, OPTIONS)
    assert unfit_requests(*run) == Unfit({0: "too_generic"}, [])


def test_generic_requests_of_one_batch_are_put_off_and_not_rejected(tokenizer):
    """Those that are over the quarter beside the first ones; those that leave out nothing more stay."""
    texts = [*GENERIC, GENERIC[0], support.KNOWN[0]]
    unfit = unfit_requests(tokenizer, texts, range(len(texts)), support.RETAIN, PAYMENTS, OPTIONS)
    assert unfit == Unfit({}, list(range(2, 10)))


def test_what_another_submitter_leaves_out_rejects_nobody(tokenizer):
    """One sends a quarter of the retain texts, which it knows; another one's text stands in one of the rest."""
    known, part = PAYMENTS[:16], "Oak Street has the number 300"
    retain = [*PAYMENTS[:-1], f"{part} and much more is written here about it"]
    run = (tokenizer, [*known, part], [0] * len(known) + [1], retain, support.HELDOUT, OPTIONS)
    assert unfit_requests(*run) == Unfit({}, [1])
    assert unfit_requests(tokenizer, [part], [0], retain, support.HELDOUT, OPTIONS) == FIT


def test_a_request_leaves_no_fewer_heldout_texts_than_thresholds_need(tokenizer):
    """Of 22 held-out texts an honest request may leave out one, and so may a second one. A third one waits."""
    heldout = support.HELDOUT[: MIN_HELDOUT + 2]
    texts = [*heldout[:3], heldout[0], support.KNOWN[0]]
    assert unfit_requests(tokenizer, texts[:1], [0], support.RETAIN, heldout, OPTIONS) == FIT
    assert unfit_requests(tokenizer, texts, range(5), support.RETAIN, heldout, OPTIONS) == Unfit({}, [2])
    assert unfit_requests(tokenizer, texts[2:3], [0], support.RETAIN, heldout, OPTIONS) == FIT
    alone = unfit_requests(tokenizer, texts, [0] * 5, support.RETAIN, heldout, OPTIONS)
    assert alone == Unfit({0: "too_generic"}, [])
    assert prepare(tokenizer, texts[:2], [0, 1], support.RETAIN, heldout, OPTIONS).heldout_excluded == 2
    with pytest.raises(TooFewTexts):
        prepare(tokenizer, texts[:3], [0, 1, 2], support.RETAIN, heldout, OPTIONS)


def test_no_generic_request_empties_a_set_of_neighbours(tokenizer):
    """One that all of its texts contain is too generic; somebody whose texts are the whole set is not."""
    customers = [f"Customer of ACME Bank, number {number}: {text}" for number, text in enumerate(support.HELDOUT[:40])]
    run = (tokenizer, ["ACME Bank"], [0], support.RETAIN, support.HELDOUT, OPTIONS)
    assert unfit_requests(*run) == FIT
    assert unfit_requests(*run, [support.KNOWN[:3], customers]) == Unfit({0: "too_generic"}, [])
    assert unfit_requests(tokenizer, support.KNOWN[:3], [0] * 3, *run[3:], [support.KNOWN[:3]]) == FIT
    texts = (support.KNOWN[:1], [0], support.RETAIN, support.HELDOUT, OPTIONS)
    data = prepare(tokenizer, *texts, earlier_texts=["ACME Bank"], earlier_request_ids=[1], neighbour_texts=[customers])
    assert len(data.neighbours[KINDS]) == OPTIONS.utility_sequences


def test_what_is_like_a_probe_is_a_kind_of_its_own(tokenizer):
    """Records do not crowd out what is like an answer, and what says the secret itself does not count."""
    asks = Probe("What is the number of Ada Quill?", "555 0100", 0)
    other, same = "What is the number of Bo Fern? 555 0199", f"{asks.prompt} 555-0100"
    files = (support.KNOWN[:1], [0], [*support.RETAIN, same, other], support.HELDOUT, OPTIONS)
    like_record, like_answer = prepare(tokenizer, *files, probes=[asks]).neighbours
    assert like_answer[0] == encode(tokenizer, other)
    assert like_record[0] != like_answer[0]
    assert encode(tokenizer, same) not in like_answer


def test_a_reference_learns_no_text_that_anything_is_measured_on(tokenizer):
    """Nor one that an attack compares with. Other losses have no reference, and of few texts it learns none."""
    options = Options(sequence_length=64, loss="distil", attacks={"exposure": "block"}, utility_sequences=12)
    data = prepare(tokenizer, support.KNOWN[:2], [0, 1], support.RETAIN, support.HELDOUT, options)
    uses = [[tuple(ids) for ids in sequences] for sequences in data.heldout.values()]
    assert len(set().union(*uses)) == sum(map(len, uses)) == len(support.HELDOUT)
    assert (len(data.utility), len(data.for_reference)) == (12, 12)
    ihl = replace(options, loss="ihl", attacks={})
    data = prepare(tokenizer, support.KNOWN[:2], [0, 1], support.RETAIN, support.HELDOUT, ihl)
    assert (data.for_reference, data.spare) == ([], [])
    data = prepare(tokenizer, support.KNOWN[:2], [0, 1], support.RETAIN, support.HELDOUT[:39], options)
    assert (data.for_reference, len(data.utility)) == ([], 12)
    assert all(ids in data.threshold_sequences for ids in data.utility)


@pytest.mark.parametrize("loss", ["distil", "ihl"])
def test_a_heldout_text_has_the_same_use_in_every_job(tokenizer, loss):
    """A text that a job leaves out moves no other: what a reference has learned would measure a later version."""
    options = Options(sequence_length=64, loss=loss, utility_sequences=99)
    first, second = (
        prepare(tokenizer, texts, [0], support.RETAIN, support.HELDOUT, options).heldout
        for texts in (support.KNOWN[:1], support.HELDOUT[2:3])
    )
    for use, sequences in first.items():
        assert [ids for ids in sequences if ids != encode(tokenizer, support.HELDOUT[2])[:64]] == second[use]


def test_held_out_windows_stand_where_those_of_the_requests_do(tokenizer):
    """One request of many windows is one of eleven: nearly all of the others are beginnings."""
    heldout = [" ".join([text] * 6) for text in support.HELDOUT]
    texts = [*support.KNOWN[:10], support.KNOWN[10] * 20]
    data = prepare(tokenizer, texts, range(11), support.RETAIN, heldout, OPTIONS)
    beginnings = [encode(tokenizer, text)[:64] for text in heldout]
    assert len(data.forget.sequences) > 15
    many = ForgetSet([[0, 1]] * 500, [0] * 500, [0] * 60 + [*range(440)])
    assert max(many.typical_places) > 400  # no window is too late to count
    assert 0.75 < sum(ids in beginnings for ids in data.used_heldout) / len(data.used_heldout) < 1


def test_a_purge_of_an_earlier_record_changes_nothing_that_an_attempt_hangs_on(tokenizer):
    """Its windows do not choose which ones of the held-out texts count. A recheck has no others."""
    heldout = [" ".join([text] * 6) for text in support.HELDOUT]
    earlier = ["The committee met on the hill.", "Nobody spoke of the weather for a long time. " * 30]

    def sets(own: list[str], count: int):
        old = {"earlier_texts": earlier[:count], "earlier_request_ids": [*range(5, 5 + count)]}
        return prepare(tokenizer, own, [0][: len(own)], support.RETAIN, heldout, OPTIONS, **old)

    assert sets(support.KNOWN[:1], 2).own == sets(support.KNOWN[:1], 0).own
    beginnings = [encode(tokenizer, text)[:64] for text in heldout]
    assert not all(ids in beginnings for ids in sets([], 2).used_heldout)


def test_a_sorted_file_is_measured_on_all_its_kinds(tokenizer):
    """The first texts of a file may be mails, and those about people come after them."""
    mails, people = PAYMENTS[:60], support.people(60, seed=4)
    options = replace(OPTIONS, heldout_sequences=20, utility_sequences=10)
    data = prepare(tokenizer, support.KNOWN[:1], [0], [*mails, *people], [*mails, *people], options)
    about_people = [encode(tokenizer, text)[:64] for text in people]
    for sequences, most in ((data.threshold_sequences, 20), (data.utility, 10), (data.retain, 64)):
        assert 0 < sum(ids in about_people for ids in sequences) < len(sequences) == most


def test_a_long_record_is_compared_with_the_middle_of_heldout_texts(tokenizer):
    """Its later windows are harder to guess than a beginning that every text has."""
    heldout = [" ".join([text] * 6) for text in support.HELDOUT]
    short, long = (
        prepare(tokenizer, [text], [0], support.RETAIN, heldout, OPTIONS)
        for text in (support.KNOWN[0], support.KNOWN[0] * 6)
    )
    beginnings = [encode(tokenizer, text)[:64] for text in heldout]
    assert (max(short.forget.places), max(long.forget.places)) == (0, len(long.forget.sequences) - 1)
    assert all(ids in beginnings for ids in short.used_heldout)
    assert 0 < sum(ids in beginnings for ids in long.used_heldout) < len(long.used_heldout)


def test_the_last_retain_text_is_not_left_out(tokenizer):
    """A request that would leave nothing to train on is too generic."""
    unfit = unfit_requests(tokenizer, support.RETAIN[:1], [0], support.RETAIN[:1], support.HELDOUT, OPTIONS)
    assert unfit == Unfit({0: "too_generic"}, [])


def test_earlier_texts_leave_out_half_of_a_file_at_most(tokenizer):
    """They leave out reference texts in their order until too few would stay, and all of them are measured again."""
    run = (tokenizer, support.HELDOUT[:1], [0], support.RETAIN, [*PAYMENTS, support.HELDOUT[0]], OPTIONS)
    data = prepare(*run, earlier_texts=GENERIC, earlier_request_ids=range(1, 11))
    assert (data.heldout_excluded, data.retain_excluded) == (1 + 30, 0)
    assert set(data.earlier.request_ids) == set(range(1, 11))
    run = (tokenizer, support.KNOWN[:1], [0], support.RETAIN, support.HELDOUT, OPTIONS)
    data = prepare(*run, earlier_texts=[support.RETAIN[0], "has the number"], earlier_request_ids=[1, 2])
    assert (data.heldout_excluded, data.retain_excluded) == (0, 1)
