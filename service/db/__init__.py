"""All tables and all queries; `session.py` alone commits."""
