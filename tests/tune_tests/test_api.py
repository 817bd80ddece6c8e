"""What a caller of ``tune`` and ``mmfa`` can do wrong is told in a sentence; what can be done is in docs_tests."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import mmfa
import tune
from mmfa.config import profile
from mmfa.errors import ConfigError, MmfaError
from tune import api
from tune.view import SETTING


def test_the_command_line_s_words(tmp_path):
    given = {"study": "smoke", "out": tmp_path, "quick": True, "strict_counts": False, "trials": 3, "workers": None}
    words = api._arguments({**given, "set": {"optim.num_epochs": 3, "model.pooling": "gem", "run.bf16": True}})
    assert words == [
        "--study", "smoke", "--out", str(tmp_path), "--quick", "--trials", "3", "--set", "optim.num_epochs=3",
        "--set", 'model.pooling="gem"', "--set", "run.bf16=true",
    ]  # fmt: skip
    request = api._request(api._arguments({"study": "smoke", "out": tmp_path, "quick": True}), "tune.run('smoke')")
    assert request.plan.study.name == "smoke" and request.plan.quick and request.command == "tune.run('smoke')"
    assert not request.trials_asked and not (tmp_path / "mlflow.db").exists()


def test_a_call_is_told_as_it_was_typed():
    assert api._call("smoke", {"out": Path("a"), "trials": 3}) == "tune.run('smoke', out='a', trials=3)"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"study": "lambda"}, "'lambda' is not a shipped study; did you mean 'lambdas'?"),
        ({"study": "smoke", "trails": 3}, "'--trails' is not an option; did you mean '--trials'?"),
        ({"study": "smoke", "set": {"optim.epochs": 3}}, "optim.epochs"),
        ({"study": "smoke", "set": {"optim.num_epochs": None}}, "set takes numbers, words and lists, but got None"),
    ],
)
def test_bad_input_starts_nothing(tmp_path, options, match):
    with pytest.raises(ConfigError, match=re.escape(match)):
        tune.run(**options, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_of_nothing(tmp_path):
    with pytest.raises(MmfaError, match="out must be the folder of a study, but .* has no mlflow.db; run one first"):
        tune.results(out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_results_have_exact_numbers_and_the_names_of_choices():
    params = {
        f"{SETTING} λ3": "1.67",
        "loss.lambda_mdal": "1.6742",
        f"{SETTING} kernel.bandwidths": "paper",
        "kernel.bandwidths": "(1.0, 5.0, 10.0)",
    }
    run = SimpleNamespace(data=SimpleNamespace(params=params, tags={}, metrics={"target/mAP": 0.5}))
    row = api._row(run)
    assert (row["loss.lambda_mdal"], row["kernel.bandwidths"], row["target/mAP"]) == (1.6742, "paper", 0.5)


def test_results_take_no_secret():
    with pytest.raises(MmfaError, match="--tracking-uri must not hold a password") as raised:
        tune.results(tracking_uri="http://mmfa:planted@127.0.0.1:5000")
    assert "planted" not in str(raised.value)


def test_training_at_once(embedded_cache):
    few = {"optim.num_epochs": 1, "optim.warmup_epochs": 0, "data.image_height": 32, "data.image_width": 16}
    training = mmfa.train(profile("embedded").with_overrides(few), cache_dir=embedded_cache, device="cpu")
    assert [report.epoch for report in training.history] == [1]
