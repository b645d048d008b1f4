"""Alembic's environment: one connection, short lock waits, so that a migration never queues everyone behind it."""

from alembic import context
from sqlalchemy import create_engine, text

from service.db.tables import Base

engine = create_engine(context.config.attributes["url"], hide_parameters=True)
with engine.connect() as connection:
    connection.execute(text("SET lock_timeout = '5s'"))
    connection.execute(text("SET statement_timeout = '60s'"))
    connection.commit()
    context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=False)
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(7310580)"))
        context.run_migrations()
engine.dispose()
