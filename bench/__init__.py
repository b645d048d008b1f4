"""Measurements that print tables: `python -m bench.NAME`; tables stand in RESULTS.md, what was tried in TRIED.md."""
