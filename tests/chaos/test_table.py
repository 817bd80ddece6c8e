"""The page on reliability says what was measured."""

import json
from pathlib import Path

from chaos import table

HERE = Path(__file__).parent


def test_the_page_shows_what_was_measured():
    lines = [json.loads(line) for line in (HERE / "measured.jsonl").read_text().splitlines()]
    page = (HERE.parents[1] / "docs" / "reliability.md").read_text()
    assert table.table(lines) in page, "run python tests/chaos/table.py tests/chaos/measured.jsonl and paste it"


def test_a_row_has_the_median_the_range_and_how_many():
    lines = [{"fault": "worker-killed", "seconds": seconds} for seconds in (9.0, 1.0, 2.0)]
    head, rule, row = table.table(lines).splitlines()
    assert row.endswith("| 2.0 (1.0–9.0) | 3 |") and head.count("|") == rule.count("|") == row.count("|")
