"""The model's corpus, indexed."""

import pytest

from service.db import corpora
from service.steps.subjects.index import index_corpus
from tests import support
from tests.service.steps.subjects.corpus import COPY, HERS, NAMESAKE, SOMEBODY_ELSES, corpus_body


@pytest.fixture
def filled(api, model, services, tmp_path):
    """The model's corpus, indexed: hers, a copy without the address, somebody else's letter, a namesake, others."""
    texts = [*support.people(30), *HERS, COPY, SOMEBODY_ELSES, NAMESAKE]
    body = corpus_body(tmp_path, texts, columns={"id": "controller_customer_id"})
    answer = api.post(f"/v1/models/{model}/corpora", json=body)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["state"], answer.json()["progress"]) == ("indexing", 0)
    with services.db.reading() as session:
        (corpus_id,) = corpora.unfinished(session)
    index_corpus(services, corpus_id)
    corpus = api.get(f"/v1/models/{model}/corpora/crm").json()
    assert (corpus["state"], corpus["records"], corpus["progress"]) == ("ready", len(texts), 1)
    return texts
