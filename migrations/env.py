"""Alembic's environment. Lock waits are short, and each migration has a transaction: other sessions never wait long."""

from contextlib import closing

from alembic import context
from sqlalchemy import text

from service.db import (  # noqa: F401  # each adds its tables
    compute_workers,
    console_sessions,
    corpus_tables,
    history_tables,
    limit_tables,
    log_tables,
    recheck_tables,
    tables,
    tallies,
)
from service.db.base import Base
from service.db.session import Database
from service.migrate import MIGRATION_LOCK, SET_TIMEOUTS

database = Database(context.config.attributes["url"], pool_size=1)
with closing(database), database.engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
    connection.execute(text(SET_TIMEOUTS))
    connection.execute(text("SELECT pg_advisory_lock(:alone)"), {"alone": MIGRATION_LOCK})  # until the connection ends
    connection.commit()
    context.configure(
        connection=connection, target_metadata=Base.metadata, compare_server_default=False,
        transaction_per_migration=True,
    )  # fmt: skip
    with context.begin_transaction():
        context.run_migrations()
