"""The test of service/x/y.py is tests/service/x/test_y.py; e2e and chaos run the whole stack."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
