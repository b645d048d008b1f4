"""A day of a fleet in minutes: the service's own scheduling on a real PostgreSQL server, in virtual time.

    python -m bench.simulator --models 1500 --workers 1000 --requests 1000000

What is real: batching, the choice of the next job, claims, leases and heartbeats, the sweep, every write of a job from
its claim to its publication, the log, and the query by which Kubernetes starts workers. They are the functions that the
workers call, on tables with all their indexes and triggers.

What is simulated: time, the arrival of requests, how long each phase of a job takes (`costs`), messages, and the death
of workers. What has no part in scheduling is left out: no text, model or file is read or written. Requests are
inserted by SQL, without texts and receipts. A certificate is a few bytes and no file is published, but their rows, log
entries and locks are real. Nothing is delivered or purged. One process does everything in turn, so that nobody ever
waits for a lock of somebody else.

What changes nothing is counted and not done: of the heartbeats between two phases the last alone is written, with the
lease that it would leave behind (unless `--every-beat`); an idle worker looks when there may be a job; batching is not
woken for a model that has a job; with `--full-every` most jobs write a statement in place of each step
(`short_steps`). The database's load is given with what was counted, at the mean time of what was done.
"""
