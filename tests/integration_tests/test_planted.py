"""Planted truth at full size, through the real command: what is there is found, what is not there is not."""

import json

import pytest
from integration_tests.driver import ROOT, Driver

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
HOURS = 3600


def words(tmp_path, cache, study, *options):
    """Run a shipped study; return its judgements by (candidate, baseline), and what it printed."""
    driver = Driver(tmp_path, cache=cache)
    driver.command[driver.command.index("--study") + 1] = study
    code, text = driver.run(*options, timeout=2 * HOURS)
    assert code == 0, text
    record = json.loads((driver.out / "verdict.json").read_text())
    return {(one["candidate"], one["baseline"]): one for one in record["judgements"]}, text


def test_lambdas_finds_a_setting_that_beats_the_paper(tmp_path, embedded_cache):
    found, text = words(tmp_path, embedded_cache, "lambdas", "--confirm-seeds", "8")
    (one,) = found.values()
    assert one["word"] == "BEATS" and one["setting"]["loss.lambda_attr"] >= 1
    assert one["contrast"]["n_candidate"] == one["alignment"]["n_other"] == 8
    assert "is alignment's" in text and "@champion is now version 2, by its verdict" in text


def test_one_setting_is_not_told_apart_from_itself(tmp_path, embedded_cache):
    found, _ = words(tmp_path, embedded_cache, "aa")
    assert found["a", "b"]["word"] == "UNDETERMINED"


def test_alignment_on_the_planted_pair(tmp_path, embedded_cache):
    found, _ = words(tmp_path, embedded_cache, "alignment")
    committed = json.loads((ROOT / "docs" / "results" / "alignment-embedded.verdict.json").read_text())
    for one in committed["judgements"]:
        assert found[one["candidate"], one["baseline"]]["word"] == one["word"]


def test_alignment_finds_nothing_on_the_null_pair(tmp_path, embedded_cache):
    found, _ = words(tmp_path, embedded_cache, "alignment", "--target", "embedded-null")
    assert found["mmfa", "target_bn"]["word"] == "UNDETERMINED"
