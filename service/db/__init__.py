"""All tables and all queries. `session.py` is the only module that commits."""
