"""Models: their versions as a lineage, policy, corpora; comparing two versions, and withdrawing one."""

import json
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from markupsafe import Markup

from service.console import plots
from service.console.api_client import Api, ApiDep, Refused, attempt
from service.console.pages import PageRoute, page, see
from service.console.sign_in import CheckedForm, Visit, Visitor
from service.console.today import backlog_plot
from service.console.words import ALL
from service.domain.errors import Invalid

router = APIRouter(prefix="/console/models", route_class=PageRoute, include_in_schema=False)
PATH, SHOWN = "/v1/models", 200
GROWN = "It would cost more than the page said before. Nothing was changed."
Name = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Number = Annotated[int, Path(ge=0, lt=2**31)]
Asked = Annotated[int, Query(ge=0, lt=2**31)]


@router.get("")
async def listing(visitor: Visitor, api: ApiDep, cursor: str = "") -> Response:
    """All models."""
    return await _list(visitor, api, cursor=cursor)


async def _list(
    visitor: Visit, api: Api, *, cursor: str = "", messages: list[str] | None = None, status: int = 200
) -> Response:
    return page("models.html", visitor, status, listing=await api.get(PATH, cursor=cursor), messages=messages)


@router.post("")
async def register(visitor: Visitor, api: ApiDep, form: CheckedForm) -> Response:
    """Register a model."""
    body: dict[str, object] = {**form.given("name", "path", "retain_path", "heldout_path", "base_path")}
    if form.one("neighbours_path"):
        body["neighbour_paths"] = {form.one("neighbours") or "neighbours": form.one("neighbours_path")}
    try:
        if form.one("policy"):
            body["policy"] = _policy(form.one("policy"))
        await api.post(PATH, body)
    except (Refused, Invalid) as error:
        return await _list(visitor, api, messages=_messages(error), status=error.status)
    return see(f"/console/models/{form.one('name')}")


def _policy(text: str) -> object:
    """The policy in a form.

    Raises:
        Invalid: It is not JSON.
    """
    try:
        return json.loads(text)
    except ValueError:
        raise Invalid("It is not JSON.", field="policy") from None


def _count(text: str) -> int:
    """The number in a hidden field; 0 if it is none."""
    return int(text) if text.isdecimal() else 0


def _messages(error: Refused | Invalid) -> list[str]:
    return error.messages if isinstance(error, Refused) else [f"{error.field}: {error.detail}"]


@router.get("/{name}")
async def one(
    name: Name, visitor: Visitor, api: ApiDep, cursor: Annotated[str, Query(max_length=200)] = ""
) -> Response:
    """One model."""
    return await _show(visitor, api, name, cursor=cursor)


async def _show(
    visitor: Visit, api: Api, name: str, messages: list[str] | None = None, status: int = 200, cursor: str = ""
) -> Response:
    model = await api.get(f"{PATH}/{name}")
    listed = await api.get(f"{PATH}/{name}/versions", limit=SHOWN, cursor=cursor)
    versions = listed["items"]
    waiting = await api.get(f"/v1/overview/backlogs/{name}") if visitor.may(*ALL) else None
    corpora = (await api.get(f"{PATH}/{name}/corpora", limit=SHOWN))["items"]
    policies = (await api.get(f"{PATH}/{name}/policies", limit=SHOWN))["items"]
    rechecks = (await api.get(f"{PATH}/{name}/rechecks", limit=1))["items"]
    return page(
        "model.html",
        visitor,
        status,
        model=model,
        versions=versions,
        more=listed["next_cursor"],
        waiting=waiting,
        deadlines=backlog_plot(waiting) if waiting else "",
        corpora=corpora,
        recheck=rechecks[0] if rechecks else None,
        policies=[{**policy, "changes": _changes(policies, place)} for place, policy in enumerate(policies)],
        drift=drift(versions),
        messages=messages,
        policy=json.dumps(model["policy"], indent=2),
    )


def _changes(policies: list[dict[str, Any]], place: int) -> list[tuple[str, object, object]]:
    """(field, before, after) of what a policy changed; nothing for the first one."""
    if place + 1 == len(policies):
        return []
    after, before = policies[place]["policy"], policies[place + 1]["policy"]
    return [(name, before.get(name), after[name]) for name in after if before.get(name) != after[name]]


def drift(versions: list[dict[str, Any]]) -> Markup:
    """The perplexity of each version, relative to version 0."""
    values = [
        (version["version"], ratio)
        for version in reversed(versions)
        if (ratio := (version["metrics"].get("utility") or {}).get("total_ratio")) is not None
    ]
    limits = [(version["metrics"].get("utility") or {}).get("max_total_ratio") for version in versions]
    limit = next((value for value in limits if value is not None), None)
    line = plots.Line("perplexity ratio", [(0, 1.0), *values] if values else [], limit)
    return plots.lines(
        "Held-out perplexity of each version, relative to version 0", [line], x_name="version", from_zero=False
    )


@router.post("/{name}/policy")
async def set_policy(name: Name, visitor: Visitor, api: ApiDep, form: CheckedForm) -> Response:
    """Show what a new policy changes; set it once that was confirmed."""
    try:
        policy = _policy(form.one("policy"))
        if form.one("confirmed"):
            body = {"policy": policy, "policy_version": _count(form.one("policy_version"))}
            await api.call("PUT", f"{PATH}/{name}/policy", json=body)
            return see(f"/console/models/{name}")
        model = await api.get(f"{PATH}/{name}")
    except (Refused, Invalid) as error:
        return await _show(visitor, api, name, _messages(error), error.status)
    before, after = model["policy"], policy if isinstance(policy, dict) else {}
    changes = [
        (field, before.get(field), after.get(field, "its default"))
        for field in dict.fromkeys([*before, *after])
        if before.get(field) != after.get(field, "its default")
    ]
    return page("policy.html", visitor, model=model, changes=changes, policy=form.one("policy"))


@router.post("/{name}/corpora")
async def add_corpus(name: Name, visitor: Visitor, api: ApiDep, form: CheckedForm) -> Response:
    """Register a corpus."""
    columns = {form.one(kind): kind for kind in ("email", "phone") if form.one(kind)}
    body = {**form.given("path", "text_column"), "name": form.one("corpus"), "columns": columns}
    again = partial(_show, visitor, api, name)
    return await attempt(api.post(f"{PATH}/{name}/corpora", body), again, f"/console/models/{name}#corpora")


@router.post("/{name}/corpora/{corpus}/remove")
async def remove_corpus(name: Name, corpus: Name, visitor: Visitor, api: ApiDep, _: CheckedForm) -> Response:
    """Remove a corpus and its index."""
    call = api.call("DELETE", f"{PATH}/{name}/corpora/{corpus}")
    return await attempt(call, partial(_show, visitor, api, name), f"/console/models/{name}#corpora")


@router.get("/{name}/versions/{number}")
async def version(name: Name, number: Number, visitor: Visitor, api: ApiDep, withdraw: bool = False) -> Response:
    """One version, beside its parent; with `withdraw`, what its withdrawal would cost, and the form."""
    return await _show_version(visitor, api, name, number, asks_cost=withdraw)


async def _show_version(
    visitor: Visit,
    api: Api,
    name: str,
    number: int,
    messages: list[str] | None = None,
    status: int = 200,
    *,
    asks_cost: bool = True,
) -> Response:
    shown = await api.get(f"{PATH}/{name}/versions/{number}")
    later = (await api.get(f"{PATH}/{name}/supersedes", after=number, limit=1))["items"]
    downloads, cost = [], None
    if visitor.may("audit"):
        downloads = (await api.get(f"{PATH}/{name}/versions/{number}/downloads"))["items"]
    if asks_cost and visitor.may() and not shown["withdrawn_at"]:
        cost = await api.get(f"{PATH}/{name}/versions/{number}/withdrawal")
    beside = {"later": later, "downloads": downloads, "cost": cost}
    return page("version.html", visitor, status, version=shown, **beside, messages=messages)


@router.post("/{name}/versions/{number}/withdraw")
async def withdraw(name: Name, number: Number, visitor: Visitor, api: ApiDep, form: CheckedForm) -> Response:
    """Withdraw a version. The page has said what it costs; if that has grown since, it says so, and nothing changes."""
    path, reopens = f"{PATH}/{name}/versions/{number}", bool(form.one("reopen"))
    if reopens and (await api.get(f"{path}/withdrawal"))["reopened"] > _count(form.one("cost")):
        return await _show_version(visitor, api, name, number, [GROWN], 409)
    body = {"reason": form.one("reason"), "reopen": reopens}
    call = api.post(f"{path}/withdraw", body)
    again = partial(_show_version, visitor, api, name, number)
    return await attempt(call, again, f"/console/models/{name}/versions/{number}")


@router.get("/{name}/compare")
async def choose(name: Name, visitor: Visitor, one: Asked, other: Asked) -> Response:  # the route asks who it is
    """Go to two versions that were chosen in the form."""
    return see(f"/console/models/{name}/compare/{one}/{other}")


@router.get("/{name}/compare/{one}/{other}")
async def compare(name: Name, one: Number, other: Number, visitor: Visitor, api: ApiDep) -> Response:
    """Two versions side by side."""
    both = [await api.get(f"{PATH}/{name}/versions/{number}") for number in (one, other)]
    return page("compare.html", visitor, name=name, both=both, rows=_rows(both))


def _rows(both: list[dict[str, Any]]) -> list[tuple[str, list[object]]]:
    """(what, its value in each version) of what two versions can be compared by."""

    def value(version: dict[str, Any], *path: str) -> object:
        member: Any = version["metrics"]
        for name in path:
            member = (member or {}).get(name)
        return member

    paths = {
        "EL of the unlearned texts": ("after", "el"),
        "MA of the unlearned texts": ("after", "ma"),
        "Held-out perplexity": ("utility", "heldout_perplexity_after"),
        "Relative to version 0": ("utility", "total_ratio"),
        "MA of neighbours": ("utility", "neighbour_ma_after"),
    }
    rows: list[tuple[str, list[object]]] = [(what, [value(v, *path) for v in both]) for what, path in paths.items()]
    attacks = {attack["name"] for version in both for attack in version["attacks"]}
    for name in sorted(attacks):
        figures = [next((a.get("figure") for a in v["attacks"] if a["name"] == name), None) for v in both]
        rows.append((f"Attack: {name.replace('_', ' ')}", figures))
    return rows
