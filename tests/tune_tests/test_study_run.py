"""The description that a study's run has in MLflow."""

import json

import pytest
from tune_tests.made_up import MadeUp, comparing, searching

from tune import judging, study_run


def described(study):
    """Return the description of a study that is over, as its end writes it."""
    verdict = study.out / f"{study.study_id}.verdict.json"
    artifacts = {"test_label_readings.json": judging.counted(study.session)}
    if verdict.exists():
        artifacts["verdict.json"] = json.loads(verdict.read_text())
    return study_run.note(study.session, artifacts)


def test_before_the_end(tmp_path):
    study = MadeUp(tmp_path, searching(trials=4))
    note = study_run.note(study.session)
    assert note.startswith(f"**{study.plan.study.question}**\n\n*No result yet: trainings are left to do.*")
    assert "| searched | λ1 0.01 … 30 (log); λ3 0.03 … 30 (log) or 0; model.pooling among max, average; 4 " in note
    study.lease.release()


def test_a_search_that_is_judged(tmp_path):
    study = MadeUp(tmp_path, searching(trials=4))
    assert study.run() == 0
    note = described(study)
    for told in ("- **Found:** ", "- **How sure:** ", "- **Labels:** labels of held-out", "- **Next:** "):
        assert told in note
    assert "Asked" not in note, "the question stands above"
    assert "| setting | n | λ1 | λ3 | model pooling |" in note and "| source only (control) |" in note


@pytest.mark.parametrize("judge", ['judge = [["mmfa", "literal"]]', ""])
def test_a_comparison_tells_its_arms_and_not_that_nothing_was_found(tmp_path, judge):
    study = MadeUp(tmp_path, comparing(judge=judge))
    assert study.run() == 0
    note = described(study)
    assert "- **Nothing was selected (selection.labels = none):** every arm was trained on the same seeds" in note
    assert "no trial has a result" not in note and "widen the space" not in note
    assert ("- **Found:** " in note) == bool(judge)
    assert "| arm | n | mAP % | rank-1 % |" in note and "| SPGAN (published) |" in note
    total = judging.counted(study.session)["total"]
    assert (total > 0) == bool(judge), "only a verdict reads them here: nothing is trained"
    assert ("its labels were read" in note) == (total > 0) and (not total or f"were read {total} times: " in note)
