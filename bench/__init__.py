"""Measurements that print tables: `python -m bench.NAME`; the latest tables stand in RESULTS.md."""
