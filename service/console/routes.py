"""The routes of the console, in order: the last one takes what no other page does."""

from service.console import decisions, entry, jobs, keys, models, oidc, records, requests, submit, today

ROUTERS = (
    today.router,
    submit.router,
    requests.router,
    decisions.router,
    jobs.router,
    models.router,
    records.router,
    keys.router,
    oidc.router,
    entry.router,
)
