"""The config: the paper's defaults, and a sentence for everything that does not hold."""

import pytest

from mmfa import config
from mmfa.config import TrialConfig
from mmfa.errors import ConfigError


def test_defaults_are_the_paper():
    flat = TrialConfig().flatten()
    paper = {
        "model.backbone": "resnet50",
        "model.pooling": "max",
        "model.dropout": 0.5,
        "loss.lambda_attr": 0.1,
        "loss.lambda_aal": 1.0,
        "loss.lambda_mdal": 1.0,
        "kernel.bandwidths": (1.0, 5.0, 10.0),
        "optim.learning_rate": 0.01,
        "optim.momentum": 0.9,
        "optim.nesterov": True,
        "optim.weight_decay": 5e-4,
        "optim.num_epochs": 25,
        "optim.decay_epoch": 20,
        "data.source_batch": 32,
        "data.target_batch": 32,
        "data.image_height": 256,
        "data.image_width": 128,
    }
    assert {name: flat[name] for name in paper} == paper


def test_profiles_keep_the_papers_question():
    paper, embedded = config.profile("paper").flatten(), config.profile("embedded").flatten()
    assert paper == TrialConfig().flatten()
    assert all(paper[name] == embedded[name] for name in paper if name.startswith(("loss.", "kernel.")))
    with pytest.raises(ConfigError, match="'embeded' is not a profile; did you mean 'embedded'"):
        config.profile("embeded")


def test_json_round_trip_and_fingerprint():
    one = TrialConfig().with_overrides({"loss.lambda_aal": 3, "kernel.bandwidths": [1, 2]})
    assert TrialConfig.from_json(one.to_json()) == one
    assert one.fingerprint() == TrialConfig.from_json(one.to_json()).fingerprint() != TrialConfig().fingerprint()
    assert one.loss.lambda_aal == 3.0 and isinstance(one.loss.lambda_aal, float)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"loss.lamda_attr": 1.0}, "'loss.lamda_attr' is not a config field; did you mean 'loss.lambda_attr'"),
        ({"lambda_attr": 1.0}, "'lambda_attr' is not a config field; did you mean 'loss.lambda_attr'"),
        ({"loss.lambda_attr": -1.0}, "loss.lambda_attr >= 0 must hold, but got -1.0"),
        ({"loss.lambda_attr": float("nan")}, "loss.lambda_attr must be a finite number, but got nan"),
        ({"loss.lambda_attr": "1"}, "loss.lambda_attr must be of type float, but got '1'"),
        ({"loss.lambda_attr": True}, "loss.lambda_attr must be of type float, but got True"),
        ({"optim.num_epochs": 2.5}, "optim.num_epochs must be of type int, but got 2.5"),
        ({"model.dropout": 1.0}, "model.dropout < 1 must hold, but got 1.0"),
        ({"model.backbone": "vgg"}, "model.backbone must be one of 'resnet50', 'resnet18', 'small', but got 'vgg'"),
        ({"model.last_stride": True}, "model.last_stride must be one of 1, 2, but got True"),
        ({"model.gem_p": 0.5}, "model.gem_p >= 1.0 must hold, but got 0.5"),
        ({"model.gem_p": 65}, "model.gem_p <= 64.0 must hold, but got 65.0"),
        (
            {"model.attribute_features": "hidden", "model.attr_head_width": 0},
            "model.attribute_features='hidden' needs a hidden layer in the attribute heads",
        ),
        ({"kernel.bandwidths": []}, "kernel.bandwidths must be one or more numbers above 0"),
        ({"kernel.bandwidths": [0]}, "kernel.bandwidths must be one or more numbers above 0"),
        ({"kernel.bandwidths": 1.0}, "kernel.bandwidths must be a list of numbers, but got 1.0"),
        ({"data.use_target": False}, "data.use_target=false leaves nothing to align"),
        ({"loss.lambda_id": 0, "loss.lambda_attr": 0}, "both 0: nothing would be learned"),
        ({"optim.warmup_epochs": 25}, "optim.warmup_epochs < optim.num_epochs must hold, but got 25 and 25"),
    ],
)
def test_what_does_not_hold_is_said(overrides, message):
    with pytest.raises(ConfigError) as raised:
        TrialConfig().with_overrides(overrides)
    assert message in str(raised.value)


def test_none_is_a_value_where_it_is_one():
    clipped = TrialConfig().with_overrides({"optim.clip_norm": 10})
    assert clipped.optim.clip_norm == 10.0 and clipped.with_overrides({"optim.clip_norm": None}) == TrialConfig()


def test_bandwidths_about_a_centre_lie_by_factors_of_two():
    config = TrialConfig().with_overrides({"kernel.centre": 0.5, "kernel.octaves": 2})
    assert config.kernel.alphas == (0.125, 0.25, 0.5, 1.0, 2.0)
    assert TrialConfig().kernel.alphas == TrialConfig().kernel.bandwidths == (1.0, 5.0, 10.0)
    with pytest.raises(ConfigError, match=r"kernel.centre > 0 must hold, but got 0"):
        TrialConfig().with_overrides({"kernel.centre": 0.0})
