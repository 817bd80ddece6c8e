"""Schedules by hand; SGD's groups; fused against plain; the running average."""

import copy

import pytest
import torch

from mmfa.config import OptimConfig, profile
from mmfa.model import MMFA
from mmfa.optim import Average, build_sgd, learning_rate, momenta, restore_momenta, set_rate


def small_model(*, channels_last=False):
    torch.manual_seed(0)
    config = profile("embedded").with_overrides({"model.dropout": 0.0})  # nothing is drawn from the global generator
    model = MMFA(config.model, num_ids=7, num_attributes=3)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def take_steps(model, optimiser, num, *, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num):
        features = model(torch.randn(4, 3, 32, 16, generator=generator).to(memory_format=torch.channels_last))
        optimiser.zero_grad()
        (features.identity_BK.square().mean() + features.attributes_BM.square().mean()).backward()
        optimiser.step()


def test_the_papers_schedule_drops_once_after_epoch_20():
    rates = [learning_rate(OptimConfig(), step=step, steps_per_epoch=10) for step in range(250)]
    assert rates == [0.01] * 200 + [0.001] * 50


def test_cosine_after_a_linear_warm_up():
    config = OptimConfig(learning_rate=1.0, num_epochs=6, schedule="cosine", warmup_epochs=2)
    rates = [learning_rate(config, step=step, steps_per_epoch=2) for step in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True) and 0 < rates[-1] < 0.05


@pytest.mark.parametrize("decay_on", ["all", "matrices"])
def test_weight_decay_touches_what_it_should(decay_on):
    model = small_model()
    optimiser = build_sgd(model, OptimConfig(decay_on=decay_on))
    decayed = {id(p) for group in optimiser.param_groups if group["weight_decay"] > 0 for p in group["params"]}
    assert decayed == {id(p) for p in model.parameters() if decay_on == "all" or p.ndim >= 2}
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("decay_on", ["all", "matrices"])
def test_the_backbones_rate_is_a_multiple_of_the_heads(decay_on):
    model = small_model()
    optimiser = build_sgd(model, OptimConfig(backbone_lr_mult=0.1, decay_on=decay_on))
    set_rate(optimiser, 0.5)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates.pop(id(parameter)) == (0.05 if name.startswith("backbone.") else 0.5), name
    assert not rates


def test_a_multiple_of_the_rate_is_that_rate():
    models = [small_model() for _ in range(2)]
    for model, config, rate in zip(
        models, (OptimConfig(backbone_lr_mult=0.25), OptimConfig()), (0.2, 0.05), strict=True
    ):
        optimiser = build_sgd(model, config)
        set_rate(optimiser, rate)
        take_steps(model, optimiser, 1, seed=1)
    assert all(map(torch.equal, *(model.backbone.parameters() for model in models)))
    assert not any(map(torch.equal, *(model.identity_head.parameters() for model in models)))


def test_fused_equals_plain_sgd_with_channels_last_weights():
    models = [small_model(channels_last=True) for _ in range(2)]
    fused = build_sgd(models[0], OptimConfig())
    assert fused.defaults["fused"]
    plain = torch.optim.SGD(
        models[1].parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, foreach=False
    )
    for model, optimiser in zip(models, (fused, plain), strict=True):
        take_steps(model, optimiser, 3, seed=1)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_momentum_comes_back_in_its_parameters_memory_format():
    model = small_model(channels_last=True)
    optimiser = build_sgd(model, OptimConfig())
    take_steps(model, optimiser, 2, seed=1)
    saved = {name: value.contiguous() for name, value in momenta(optimiser, model).items()}
    other = copy.deepcopy(model)
    resumed = build_sgd(other, OptimConfig())
    restore_momenta(resumed, other, saved)
    for parameter in other.parameters():
        assert resumed.state[parameter]["momentum_buffer"].stride() == parameter.stride()
    for one, sgd in ((model, optimiser), (other, resumed)):
        take_steps(one, sgd, 2, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_average_moves_weights_and_buffers_and_copies_counts():
    model = small_model()
    average = Average(model, decay=0.75)
    before = {name: value.clone() for name, value in average.model.state_dict().items()}
    take_steps(model, build_sgd(model, OptimConfig(learning_rate=0.5)), 1, seed=1)
    average.update()
    for name, value in average.model.state_dict().items():
        live = model.state_dict()[name]
        expected = 0.75 * before[name] + 0.25 * live if value.is_floating_point() else live
        torch.testing.assert_close(value, expected)
    assert average.model.backbone.bn1.num_batches_tracked == 1
    assert not torch.equal(average.model.backbone.bn1.running_mean, before["backbone.bn1.running_mean"])
