"""What a model says of itself follows from its training's run and its version's tags; MLflow's limit holds."""

import pytest
from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunTag

from mmfa.config import profile
from tune import model_card

VERDICT = {
    "verdict": "BEATS",
    "verdict.against": "baseline",
    "verdict.delta": "0.0712",
    "verdict.p_adjusted": "0.0123",
    "verdict.n": "8 and 8",
    "verdict.mean": "0.414",
}


def run(metrics=None, **tags):
    known = {"profile": "embedded", "git.commit": "abc123", "hardware": "AMD EPYC, 2 cores", "version.torch": "2.15.0"}
    metrics = {"target/mAP": 0.4567, "target/rank1": 0.5} if metrics is None else metrics
    info = RunInfo("r1", "7", "me", "FINISHED", 0, 1, "active")
    data = RunData(
        [Metric(name, value, 0, 0) for name, value in metrics.items()],
        [Param("a", "b")],
        [RunTag(name, value) for name, value in (known | tags).items()],
    )
    return Run(info, data)


def card(config=None, *, of=None, **tags):
    config = config or profile("embedded").with_overrides({"loss.lambda_attr": 21.0, "optim.num_epochs": 3})
    fixed = {
        "mmfa.study": "lambdas-1",
        "mmfa.lineage": "search/0003",
        "selection.labels": "target_val",
        "data.fingerprint": '{"embedded-source":"9a89","embedded-target":"0236"}',
        "config": config.to_json(),
    }
    return model_card.text(of or run(), fixed | {name.replace("__", "."): tags[name] for name in tags})


def test_a_candidate_says_that_it_was_lucky():
    text = card(objective="target_val/mAP", **{"objective__value": "0.4382"})
    for told in (
        "No verdict.",
        "mAP 45.7 %, rank1 50.0 %",
        "43.8 % `target_val/mAP` (n = 1)",
        "λ1 = 21, λ2 = 1, λ3 = 1",
        "the profile `embedded`",
        "chosen by labels of held-out identities of the target",
        '`{"embedded-source":"9a89","embedded-target":"0236"}`',
        "Multi-task Mid-level Feature Alignment Network",
        "surveillance technology",
        "rendered figures only",
        "[search/0003](#/experiments/7/runs/r1)",
        "commit `abc123`; AMD EPYC, 2 cores; torch 2.15.0",
    ):
        assert told in text, text
    assert "DukeMTMC" not in text and len(text) < model_card.LONGEST


def test_a_champion_has_its_verdict():
    text = card(**{name.replace(".", "__"): value for name, value in VERDICT.items()})
    assert (
        "BEATS the baseline by +7.1 points of target mAP over n = 8 and 8 fresh seeds, adjusted p = 0.012; its "
        "mean is 41.4 %. These weights are those of the first fresh seed, not of the best one."
    ) in text
    assert "No verdict" not in text and "share" not in text
    more = card(**{name.replace(".", "__"): value for name, value in VERDICT.items()}, verdict__alignment="-0.0071")
    assert "Alignment's share of it is -0.7 points, the rest the setting's." in more
    several = card(**{name.replace(".", "__"): value for name, value in VERDICT.items()}, verdict__of="3")
    assert "its mean is 41.4 %, the largest gain of 3 settings that were judged. These weights" in several


@pytest.mark.parametrize(("source", "target"), [("market1501", "dukemtmc-reid"), ("dukemtmc-reid", "market1501")])
def test_what_saw_duke_says_that_it_was_withdrawn(source, target):
    text = card(
        profile("paper").with_overrides({"data.source": source, "data.target": target}), of=run(profile="paper")
    )
    assert "**DukeMTMC-reID has been withdrawn by its authors** (2019)" in text and "rendered" not in text
    assert f"On cameras other than those of {target} it is untested" in text
    assert len(text) < model_card.LONGEST


def test_a_target_without_labels_has_no_accuracy():
    text = card(of=run({}), selection__labels="none", objective="label_free/score", objective__value="1.25")
    assert "The target has no labels by which it could be judged" in text and "official split" not in text
    assert "In its search: 1.25 `label_free/score` (n = 1)" in text


def test_the_whole_model():
    text = model_card.about("mmfa-a-to-b", "market1501", "folder:x")
    assert "labels of **market1501**" in text and 'load_model("models:/mmfa-a-to-b@champion")' in text
