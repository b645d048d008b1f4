"""What the hub's own client lists: models, references and commits, and none of a withdrawn version."""

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.service.conftest import registration
from tests.service.jobs import published
from tests.service.served import served


@pytest.fixture
def hub(services, new_key, monkeypatch):
    """The hub's client of the application on a socket, with a key that may load superseded versions too."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with served(services) as (host, port):
        yield HfApi(endpoint=f"http://{host}:{port}/hub", token=new_key("download", "audit"))


@pytest.fixture
def commits(api, services, model) -> list[str]:
    """The commits of versions 0, 1 and 2 of a model."""
    for text in ("a record", "another"):
        published(api, services, text)
    return [api.get(f"/v1/models/tiny/versions/{number}").json()["digest"][:40] for number in range(3)]


def test_references_are_the_newest_version_and_a_tag_for_each(hub, commits):
    """As `git ls-remote` would list them."""
    refs = hub.list_repo_refs("any/tiny", include_pull_requests=True)
    assert [(branch.name, branch.ref, branch.target_commit) for branch in refs.branches] == [
        ("main", "refs/heads/main", commits[2])
    ]
    tags = {tag.name: (tag.ref, tag.target_commit) for tag in refs.tags}
    assert tags == {f"v{number}": (f"refs/tags/v{number}", commit) for number, commit in enumerate(commits)}
    assert (refs.converts, refs.pull_requests) == ([], [])
    for tag, (_, commit) in tags.items():
        assert hub.model_info("any/tiny", revision=tag).sha == commit


def test_commits_are_the_versions_up_to_a_revision(hub, commits):
    """Newest first, each with its title, its time and who signed it."""
    listed = hub.list_repo_commits("any/tiny", formatted=True)
    assert [commit.commit_id for commit in listed] == commits[::-1]
    assert [commit.title for commit in listed] == ["Version 2", "Version 1", "Version 0, the base model"]
    assert listed[0].authors == ["unlearnd"]
    assert listed[0].created_at >= listed[1].created_at
    for revision in ("v1", "1", commits[1]):
        earlier = hub.list_repo_commits("any/tiny", revision=revision)
        assert [commit.commit_id for commit in earlier] == commits[1::-1]


def test_models_are_listed_by_name(api, base, services, hub, commits):
    """Whole, by a part of the name, under any organisation, and a page at a time."""
    for name in ("other", "tiny-2"):
        assert api.post("/v1/models", json=registration(base, name=name)).status_code == 201
    assert {model.id: model.sha for model in hub.list_models()} == {
        "any/other": commits[0],
        "any/tiny": commits[2],
        "any/tiny-2": commits[0],
    }
    assert [model.id for model in hub.list_models(search="TINY", author="acme", limit=5)] == [
        "acme/tiny",
        "acme/tiny-2",
    ]
    assert [model.id for model in hub.list_models(search="acme/oth")] == ["any/other"]
    assert not list(hub.list_models(search="%"))
    assert [model.id for model in hub.list_models(limit=1)] == ["any/other"]
    (tiny, *_) = hub.list_models(search="tiny", full=True, sort="downloads")
    assert (tiny.author, tiny.private, tiny.last_modified is not None) == ("any", True, True)


@pytest.mark.parametrize("public_url", ["", "https://models.example"])
def test_a_page_of_models_links_to_the_next(api, base, services, model, public_url):
    """With the same search, at the address that callers use."""
    services.settings.public_url = public_url
    for name in ("tiny-2", "tiny-3"):
        api.post("/v1/models", json=registration(base, name=name))
    params = {"limit": 2, "search": "tiny", "author": "acme"}
    first = api.get("/hub/api/models", params=params, headers={"Host": "evil.example"})
    assert [model["id"] for model in first.json()] == ["acme/tiny", "acme/tiny-2"]
    link = first.links["next"]["url"]
    assert link.startswith(f"{public_url or 'http://testserver'}/hub/api/models?")
    second = api.get(link.removeprefix(public_url))
    assert [model["id"] for model in second.json()] == ["acme/tiny-3"]
    assert "next" not in second.links


def test_a_withdrawn_version_is_in_no_list(api, hub, commits):
    """Neither as a tag, nor as a commit or a revision."""
    assert api.post("/v1/models/tiny/versions/1/withdraw", json={"reason": "faulty"}).status_code == 200
    assert [tag.name for tag in hub.list_repo_refs("any/tiny").tags] == ["v2", "v0"]
    assert [commit.commit_id for commit in hub.list_repo_commits("any/tiny")] == [commits[2], commits[0]]
    for revision in ("v1", "1", commits[1]):
        with pytest.raises(RevisionNotFoundError):
            hub.list_repo_commits("any/tiny", revision=revision)


def test_what_is_not_there_is_said_in_the_hubs_words(hub, model, new_key):
    """Its client raises what it raises for the hub; a key without the scope lists nothing."""
    for action in (hub.list_repo_refs, hub.list_repo_commits):
        with pytest.raises(RepositoryNotFoundError):
            action("any/nobody")
    with pytest.raises(RevisionNotFoundError):
        hub.list_repo_commits("any/tiny", revision="v9")
    reader = HfApi(endpoint=hub.endpoint, token=new_key("read"))
    for action in (lambda: reader.list_repo_refs("any/tiny"), lambda: list(reader.list_models())):
        with pytest.raises(HfHubHTTPError, match="403"):
            action()


def test_a_version_that_remembers_is_listed_for_auditors_alone(hub, commits, new_key):
    """Whoever may only download sees what such a key can load: the newest version."""
    user = HfApi(endpoint=hub.endpoint, token=new_key("download"))
    assert [tag.name for tag in user.list_repo_refs("any/tiny").tags] == ["v2"]
    assert [commit.commit_id for commit in user.list_repo_commits("any/tiny")] == commits[:1:-1]
    assert [model.sha for model in user.list_models()] == [commits[2]]
