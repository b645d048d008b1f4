"""A dump of the database, and its restoration by an operator."""

import psycopg

from service.steps.operator.restore import reconcile
from service.steps.upkeep.purge import purge_restored
from service.steps.upkeep.shred import rewrap_restored

TABLES = (
    "key_epochs",
    "deletion_requests",
    "records",
    "jobs",
    "job_events",
    "versions",
    "certificates",
    "outbox",
    "audit_entries",
    "request_tallies",
)


def backup(services) -> dict[str, list]:
    """The rows of the tables that a job or an operator changes."""
    copied = {}
    with psycopg.connect(services.settings.owner_database_url) as connection:
        copied["models"] = connection.execute("SELECT id, latest FROM models").fetchall()
        for table in TABLES:
            with connection.cursor().copy(f"COPY {table} TO STDOUT") as copy:
                copied[table] = [bytes(row) for row in copy]
    return copied


def restore(services, copied: dict[str, list]) -> None:
    """Put the rows back, as a restored dump has them, and bring the database up to storage."""
    services.db.engine.dispose()
    with psycopg.connect(services.settings.owner_database_url) as connection:
        connection.execute("SET session_replication_role = replica")  # no triggers and no order of tables
        connection.execute(f"TRUNCATE {', '.join(TABLES)}, downloads, approvals CASCADE")
        for table in TABLES:
            with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                for row in copied[table]:
                    copy.write(row)
        for model_id, latest in copied["models"]:
            connection.execute("UPDATE models SET latest = %s WHERE id = %s", [latest, model_id])
    reconcile(services)
    rewrap_restored(services)
    purge_restored(services)
