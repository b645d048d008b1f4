"""Hours of a fleet in minutes: the service's own scheduling on a real PostgreSQL server, in virtual time.

    python -m bench.simulator --models 60 --workers 40 --requests 6000

What is real: batching, the choice of the next job, claims, leases and heartbeats, the sweep, every write of a job from
its claim to its publication, the log, and the query by which Kubernetes starts workers. They are the functions that the
workers call, on tables with all their indexes and triggers. A job that loses too many workers is quarantined as in the
service; the run then ends with an error.

What is simulated: time, the arrival of requests, how long each phase of a job takes (`costs`), messages, and the death
of workers. No text, model or file is read or written. Requests are inserted by SQL, without texts and receipts. A
certificate is a few bytes and no file is published, but their rows, log entries and locks are real. Nothing is
delivered or purged.

What this cannot show:

- The database's time costs no virtual time. A slow server makes a run longer, and no job later.
- One process does everything in turn. Nobody waits for a lock of somebody else.
- Commits wait for no disk.
- Reads that have no part in scheduling are not made: the input of the compute child, the check of its files, and the
  first transactions of certifying. So the real load is higher.
- A wake reaches an idle worker after 0.05 s, and none is lost.
- No worker stalls: it works, is idle, or is killed.
- Only idle workers are ended, as `unlearnd worker --drain` ends. Nothing takes a worker away from its job but a kill.

What changes nothing is counted and not done. Of the heartbeats between two phases the last alone is written, with the
lease that it would leave behind. An idle worker looks when there may be a job. Batching is not woken for a model that
has a job. Progress is written once a claim. The load counts all of them, at the mean time of those that were done.
"""
