"""Which two models of a study its pictures show, that they are drawn once, and that the reading is counted."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmfa_tests.conftest import tiny_store

from mmfa.config import profile
from mmfa.errors import CheckpointError
from mmfa.training import Training
from studies.resolve import resolve
from studies.spec import parse
from tune import confirm, pictures, study_pictures
from tune.ledger import Ledger
from tune.outcomes import Outcome, Row

SEARCH = 'question = "?"\ntrials = 3\n[space."loss.lambda_attr"]\nlow = 0.03\nhigh = 30.0\nlog = true\n'
ARMS = (
    'question = "?"\ntrials = 2\n[protocol]\njudge = [["full", "plain"]]\n[arms.plain]\ntitle = "as it is"\n'
    '[arms.full]\nset = {"loss.lambda_attr" = 10.0}\n'
)


def row(name, value=0.3, role=""):
    arm = name.partition("/")[0]
    return Row(name, arm, role, "complete", {}, value, {"target/mAP": value}, "", {})


TRIALS = [row("search/0000", 0.30), row("search/0001", 0.35), row("search/0002", 0.31)]
CONTROLS = [row("controls/source_only-s0", 0.2, "source_only"), row("controls/baseline-s1", 0.3, "baseline")]
CONFIRMED = [
    row(f"confirm/{setting}-s{seed}", 0.3, setting) for seed in (1001, 1000) for setting in ("baseline", "search-0001")
]


@pytest.fixture
def make(tmp_path):
    """Return a function that gives a study as far as its pictures see it, with the outcome that its rows say."""

    def call(rows, *, text=SEARCH, settled=True, settings=("search-0001",)):
        plan = resolve(parse(text, name="mine", origin="mine.toml"), profile_name="embedded", overrides={})
        registry = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").open("s", stage="search")
        if settled and any(one.arm == "confirm" for one in rows):
            config = plan.baseline.with_overrides({"loss.lambda_attr": 9.0})
            known = {"baseline": plan.baseline, **dict.fromkeys(settings, config)}
            of = confirm.Confirmed(settings=known, champion="", champion_version="", arms={})
            registry.study.set_user_attr(confirm.ATTRIBUTE, of.to_json())
        counted = []
        session = SimpleNamespace(
            plan=plan, registry=registry, readings=counted, count_reading=counted.append,
            folder_of=lambda name: tmp_path / "storage" / name.replace("/", "-"),
            stores=SimpleNamespace(paths={"embedded-source": Path("source"), "embedded-target": Path("target")}),
        )  # fmt: skip
        selects = not plan.study.is_comparison
        return session, Outcome(plan.metric, plan.labels, 3, list(rows), plan.baseline_run, selects)

    return call


def names(pair):
    return None if pair is None else tuple(one.name for one in pair)


def test_confirmed_it_is_the_first_fresh_seed_of_baseline_and_candidate(make):
    session, found = make([*CONTROLS, *TRIALS, *CONFIRMED])
    pair = study_pictures._pair(session, found)
    assert names(pair) == ("confirm/baseline-s1000", "confirm/search-0001-s1000")
    assert [study_pictures._title(one) for one in pair] == ["baseline, seed 1000", "search-0001, seed 1000"]


def test_unconfirmed_it_is_the_baseline_and_the_best_trial(make):
    session, found = make([*CONTROLS[:1], *TRIALS])
    pair = study_pictures._pair(session, found)
    assert names(pair) == ("search/0000", "search/0001")
    assert [study_pictures._title(one) for one in pair] == ["search/0000", "search/0001"]


def test_the_same_setting_and_seed_without_alignment_stands_beside_it(make):
    """Else a t-SNE of two settings and two seeds would be called that of alignment."""
    matched = row("confirm/search-0001-matched-s1000", 0.3, "search-0001-matched")
    session, found = make([*CONTROLS, *TRIALS, *CONFIRMED, matched])
    _, after = study_pictures._pair(session, found)
    left, differing = study_pictures._unaligned(found, after)
    assert names(left) == ("confirm/search-0001-matched-s1000",) and "same setting and seed but for align" in differing
    assert study_pictures._title(matched) == "search-0001-matched, seed 1000"
    _, found = make([*CONTROLS, *TRIALS])
    left, differing = study_pictures._unaligned(found, TRIALS[1])
    assert names(left) == ("controls/source_only-s0",) and "no target image in BatchNorm" in differing
    in_bn = row("controls/target_bn-s0", 0.2, "target_bn")
    left, differing = study_pictures._unaligned(make([*CONTROLS, in_bn, *TRIALS])[1], TRIALS[1])
    assert names(left) == ("controls/target_bn-s0",) and "not all of it is alignment's" in differing


def test_the_setting_that_beats_is_shown_else_the_first_with_a_result(make):
    second = [row(f"confirm/search-0002-s{seed}", 0.3, "search-0002") for seed in (1000, 1001)]
    lost = [dataclasses.replace(one, value=None, state="diverged") if one.role != "baseline" else one
            for one in CONFIRMED]  # fmt: skip
    session, found = make([*CONTROLS, *TRIALS, *lost, *second], settings=("search-0001", "search-0002"))
    assert names(study_pictures._pair(session, found))[1] == "confirm/search-0002-s1000"
    _, found = make([*CONTROLS, *TRIALS, *CONFIRMED, *second])
    assert names(study_pictures._pair(session, found))[1] == "confirm/search-0001-s1000"
    words = [("search-0001", "UNDETERMINED", 0.09), ("search-0002", "BEATS", 0.05), ("search-0001", "BEATS", 0.01)]
    judged = [
        {"candidate": name, "against": "baseline", "word": word, "contrast": {"delta": delta}}
        for name, word, delta in words
    ]
    pair = study_pictures._pair(session, found, {"judgements": judged})
    assert names(pair) == ("confirm/baseline-s1000", "confirm/search-0002-s1000")


def test_where_the_baseline_is_the_best_it_is_compared_with_the_best_of_the_others(make):
    session, found = make([row("search/0000", 0.9), *TRIALS[1:]])
    assert names(study_pictures._pair(session, found)) == ("search/0000", "search/0001")


def test_where_the_baseline_is_alone_there_is_nothing_to_compare(make, tmp_path):
    session, found = make([row("search/0000", 0.9), row("search/0001", None)])
    (tmp_path / "pictures").mkdir()  # of yesterday, when another trial had a result
    (tmp_path / "pictures" / "pictures.json").write_text("[]")
    assert study_pictures.draw(session, found, tmp_path / "pictures") == []
    study_pictures.count(session, found)
    assert session.readings == [] and not (tmp_path / "pictures").exists()


def test_a_comparison_shows_the_arms_that_it_judges(make):
    rows = [row(f"{arm}/{number:04d}") for arm in ("plain", "full") for number in (1, 0)]
    session, found = make(rows, text=ARMS)
    pair = study_pictures._pair(session, found)
    assert names(pair) == ("plain/0000", "full/0000")
    unjudged, found = make(rows, text=ARMS.replace('judge = [["full", "plain"]]', ""))
    assert study_pictures._pair(unjudged, found) is None


def test_an_arm_without_a_result_is_not_compared(make):
    session, found = make([row("plain/0000")], text=ARMS)
    assert study_pictures._pair(session, found) is None


@pytest.fixture(scope="module")
def training():
    small = {
        "optim.average_decay": None, "model.id_head_width": 16, "data.num_val_ids": 0, "data.source_batch": 8,
        "data.target_batch": 8, "data.image_height": 32, "data.image_width": 16, "data.store_height": 32,
        "data.store_width": 16, "run.precision": "fp32",
    }  # fmt: skip
    stores = [tiny_store(f"embedded-{role}", seed=seed) for role, seed in (("source", 1), ("target", 2))]
    return Training(profile("embedded").with_overrides(small), source=stores[0], target=stores[1], device="cpu")


@pytest.fixture
def finished(make, training, monkeypatch):
    session, found = make([*CONTROLS, *TRIALS, *CONFIRMED])
    for name in ("confirm/baseline-s1000", "confirm/search-0001-s1000", "controls/source_only-s0"):
        training.export(session.folder_of(name) / "export")
    known = {"source": training.source, "target": training.target}
    monkeypatch.setattr(study_pictures, "open_store", lambda path: known[path.name])
    return session, found


def test_they_are_drawn_once_and_the_reading_is_counted(finished, tmp_path, monkeypatch):
    session, found = finished
    folder = tmp_path / "mine.pictures"
    study_pictures.count(session, found)
    drawn = study_pictures.draw(session, found, folder)
    assert session.readings == ["pictures of the method; chose nothing"]
    assert {picture.file for picture in drawn} < {path.name for path in folder.iterdir()}
    assert "source only, seed 0" in drawn[-1].alt and "search-0001, seed 1000" in drawn[-1].alt

    def never(*_, **__):
        raise AssertionError("drawn again")

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "draw", never)
        assert study_pictures.draw(session, found, folder) == drawn
        (folder / drawn[0].file).unlink()
        with pytest.raises(AssertionError, match="drawn again"):
            study_pictures.draw(session, found, folder)


def test_a_failure_leaves_what_was_there(finished, tmp_path):
    session, found = finished
    folder = tmp_path / "mine.pictures"
    folder.mkdir()
    (folder / "pictures.json").write_text("[]")
    export = session.folder_of("confirm/search-0001-s1000") / "export" / "tensors.safetensors"
    export.write_bytes(export.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="SHA-256"):
        study_pictures.draw(session, found, folder)
    assert [path.name for path in folder.iterdir()] == ["pictures.json"]
