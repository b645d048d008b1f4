"""A database that fails or is lost."""

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError

from tests.service.conftest import REQUESTS


def test_a_database_error_shows_no_parameters(database_url):
    """SQLAlchemy's message hides what was bound."""
    from service.db.session import Database

    database = Database(database_url)
    with pytest.raises(DataError) as caught, database.transaction() as session:
        session.execute(text("SELECT 1 / 0 WHERE :name = :name"), {"name": "Zoraida Quill"})
    assert "Zoraida" not in str(caught.value)
    database.close()


def test_the_app_survives_a_lost_database_connection(api, services, model, database_url):
    """Killed server connections are replaced; nothing answers 500."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid()"
        )
    assert api.get(REQUESTS).status_code in (200, 503)
    assert api.get(REQUESTS).status_code == 200
