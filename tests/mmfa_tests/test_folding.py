"""BatchNorm folded into convolutions computes what BatchNorm after them does."""

import pytest
import torch
from torch import nn

from mmfa.config import ModelConfig, profile
from mmfa.folding import folded
from mmfa.model import MMFA

RESNETS = [ModelConfig(backbone=name, weights="none") for name in ("resnet18", "resnet50")]


def trained(config):
    """Return a model whose BatchNorms have statistics and weights of their own, in training mode."""
    torch.manual_seed(0)
    model = MMFA(config, num_ids=3, num_attributes=2)
    for name, value in [*model.backbone.named_parameters(), *model.backbone.named_buffers()]:
        if "running" in name or (value.ndim == 1 and value.is_floating_point()):
            value.data = torch.rand_like(value) + 0.5
    return model.train()


@pytest.mark.parametrize("config", [profile("embedded").model, *RESNETS], ids=lambda config: config.backbone)
@pytest.mark.parametrize("bn_mode", ["separate", "domain", "frozen"])
@pytest.mark.parametrize("domain", ["source", "target"])
def test_folded_is_the_same_but_for_rounding(config, bn_mode, domain):
    model = trained(ModelConfig(backbone=config.backbone, weights="none", bn_mode=bn_mode))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    backbone = folded(model.backbone, domain=domain)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not [one for one in backbone.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        found = model.pooled(backbone(images))
        expected = model.eval().embed(images, domain=domain)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    if bn_mode == "domain":
        with torch.no_grad():
            other = model.embed(images, domain="source" if domain == "target" else "target")
        assert (found - other).norm() > 1e-2 * expected.norm()


def test_memory_format_stays():
    model = trained(profile("embedded").model).to(memory_format=torch.channels_last)
    weights = [one.weight for one in folded(model.backbone, domain="target").modules() if isinstance(one, nn.Conv2d)]
    assert len(weights) == 12 and all(one.is_contiguous(memory_format=torch.channels_last) for one in weights)
