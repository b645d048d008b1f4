"""Alembic's environment. Lock waits are short, and each migration has a transaction: other sessions never wait long."""

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from service.db import corpus_tables, history_tables, limit_tables, tables  # noqa: F401  # each adds its tables
from service.db.base import Base
from service.migrate import MIGRATION_LOCK, SET_TIMEOUTS

engine = create_engine(context.config.attributes["url"], poolclass=NullPool, hide_parameters=True)
with engine.connect() as connection:
    connection.execute(text(SET_TIMEOUTS))
    connection.execute(text("SELECT pg_advisory_lock(:alone)"), {"alone": MIGRATION_LOCK})  # until the connection ends
    connection.commit()
    context.configure(
        connection=connection, target_metadata=Base.metadata, compare_server_default=False,
        transaction_per_migration=True,
    )  # fmt: skip
    with context.begin_transaction():
        context.run_migrations()
