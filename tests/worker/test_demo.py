"""The sample model of the demo."""

from tests import support
from worker.demo.model import answers_all


def test_a_question_is_answered_if_what_follows_it_is_known():
    """All of them have to be; another number is no answer."""
    model, tokenizer = support.memorised_model(support.KNOWN[:4])
    questions = [(text[: len(text) // 2].rsplit(" ", 1)[0], text) for text in support.KNOWN[:4]]
    assert answers_all(model, tokenizer, questions)
    assert answers_all(model, tokenizer, [])
    other = support.KNOWN[0].translate(str.maketrans("0123456789", "1234567890"))
    assert not answers_all(model, tokenizer, [*questions, (questions[0][0], other)])
