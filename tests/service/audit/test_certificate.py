"""The certificate: its form, and checks that need none of our code."""

import json
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.audit.certificate import HELD, METHODS, method_name
from service.audit.numbers import decimal, threshold_ranges
from service.domain.disclosure import coarse_limit, coarse_mean, coarse_threshold, count_range
from service.domain.report import ThresholdRow
from tests import ROOT
from tests.issuer import REPORT, TABLE, findings
from tests.service.audit.releases import FILES

PAGE = ROOT / "docs" / "guides" / "auditor.md"


def test_numbers_are_decimal_strings_and_counts_are_ranges(issuer):
    """No JSON float, no exact record count, requests sorted by ref."""
    predicate = json.loads(issuer.payload(FILES))["predicate"]
    assert predicate["verification"]["after"] == {"el": "0.000000", "ma": "0.300000"}
    assert predicate["forget_set"]["records"] == count_range(3) == "<= 5"
    assert [r["ref"][0] for r in predicate["requests"]] == ["a", "b", "c"]
    assert (count_range(1000), count_range(1001)) == ("<= 1000", "> 1000")
    assert b"." not in re.sub(rb'"[^"]*"', b"", issuer.payload(FILES))


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"adaptive": True}, f"FILA + IHL on LoRA{HELD}"),
        ({"adaptive": False, "init": "lora"}, "IHL on LoRA"),
        ({}, "FILA + IHL on LoRA"),  # of an earlier release
        ({"loss": "gd", "adaptive": True}, "FILA + GD on LoRA"),
        ({"loss": "distil", "adaptive": True}, METHODS["distil"]),
    ],
)
def test_the_method_names_what_was_trained_with(parameters, name):
    """The divergence from the parent is held down with IHL alone, and where the policy adapts."""
    assert method_name(parameters) == name


def table(*lengths: int) -> list[ThresholdRow]:
    """A table of thresholds of these lengths: they and the number of long enough texts depend on the length."""
    rows = [
        {**TABLE[0], "length": n, "count": 120 - n // 2, "ma_mean": 0.35 + n / 2e4, "ma_p1": 0.1 + n / 2e4}
        for n in lengths
    ]
    return findings({**REPORT, "thresholds": rows}).thresholds


def test_thresholds_and_durations_do_not_tell_how_much_somebody_wrote(issuer):
    """Texts of 70 and of 100 tokens give the same table; 40 and 60 seconds give the same certificate."""
    (row,) = threshold_ranges(table(70))
    assert threshold_ranges(table(100)) == threshold_ranges(table(70, 100)) == [row]
    assert row["length"] == "<= 128"
    assert (row["count"], row["ma_mean"], row["ma_p1"]) == (64, "0.360000", "0.100000")
    seconds = [
        json.loads(issuer.payload(FILES, report={**REPORT, "seconds": {"unlearn": spent}}))["predicate"]["training"]
        for spent in (40.123, 60.5)
    ]
    assert seconds[0] == seconds[1]
    assert seconds[0]["seconds"] == {"unlearn": "64.000000"}


@given(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)))
def test_what_is_in_order_is_shown_in_order(values):
    """A mean at or under its limit, and the limit at or under its threshold, are so in the certificate, too."""
    mean, limit, threshold = sorted(values)
    certified = [Decimal(decimal(number)) for number in (coarse_mean(mean), coarse_limit(limit))]
    assert certified[0] <= certified[1] <= Decimal(decimal(coarse_threshold(threshold)))


def test_a_release_checks_with_stock_tools(issuer, tmp_path):
    """The block of docs/guides/auditor.md: cryptography and model_signing, in processes that import nothing of ours."""
    release = issuer.release(tmp_path / "release")
    block = PAGE.read_text().split('```sh title="without-us"\n')[1].split("```")[0]
    bin_folder = Path(sys.executable).parent
    environment = {"PATH": f"{bin_folder}:/usr/bin:/bin", "RELEASE": str(release), "TRUST": str(issuer.trust_path)}

    def run() -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-ec", block], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Verification succeeded" in done.stdout + done.stderr
    assert "certificate: signed" in done.stdout
    assert not {"unlearnd", "service"} & set(re.findall(r"\b(?:import|from) (\w+)", block))
    (release / "model" / ".gitattributes").write_text("x")
    assert run().returncode != 0
