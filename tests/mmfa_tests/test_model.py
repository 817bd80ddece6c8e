"""Backbones, heads, pooling and starting weights."""

import dataclasses

import pytest
import torch
import torchvision

from mmfa.backbone import build_backbone, resolve_weights
from mmfa.config import ModelConfig, profile
from mmfa.errors import ConfigError
from mmfa.model import MMFA, AttributeHeads, identity_head
from mmfa.pooling import global_pool

SMALL = profile("embedded").model


def images(num, *, height=64, width=32):
    return torch.randn(num, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_small_network_has_its_size_and_shapes():
    model = MMFA(SMALL, num_ids=7, num_attributes=5)
    assert sum(p.numel() for p in model.backbone.parameters()) == 307_536
    features = model(images(4))
    assert features.pooled_BD.shape == (4, 128)
    assert features.identity_BK.shape == (4, 7)
    assert features.attributes_BM.shape == (4, 5)
    assert model.backbone(images(2)).shape == (2, 128, 8, 4)
    assert model(images(2), domain="target").identity_BK is None
    assert features.hidden_BMH is None


@pytest.mark.parametrize(("backbone", "dims"), [("resnet50", 2048), ("resnet18", 512)])
@pytest.mark.parametrize("last_stride", [1, 2])
def test_resnets_are_torchvisions_up_to_the_last_maps(backbone, dims, last_stride):
    config = ModelConfig(backbone=backbone, weights="none", last_stride=last_stride)
    with torch.device("meta"):
        model = MMFA(config, num_ids=7, num_attributes=5)
        theirs = {k for k in getattr(torchvision.models, backbone)().state_dict() if not k.startswith("fc.")}
        maps = model.backbone(torch.empty(2, 3, 256, 128))
    assert set(model.backbone.state_dict()) == theirs
    assert maps.shape == (2, dims, 8 * (3 - last_stride), 4 * (3 - last_stride))
    assert model.num_features == dims


def test_stride_2_resnet_computes_what_torchvisions_does():
    theirs = torchvision.models.resnet18(weights=None).eval()
    ours = build_backbone(ModelConfig(backbone="resnet18", weights="none")).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    with torch.no_grad():
        pooled = global_pool(ours(images(2)), pooling="average")
        assert torch.equal(theirs.fc(pooled), theirs(images(2)))


def test_pooling_choice_reaches_the_features():
    model = MMFA(dataclasses.replace(SMALL, pooling="average"), num_ids=2, num_attributes=1).eval()
    expected = model.backbone(images(3)).mean(dim=(2, 3))
    assert torch.allclose(model.embed(images(3)), expected)
    features = model(images(3))
    assert torch.equal(model.embed(images(3)), features.pooled_BD)
    assert torch.equal(model.attributes(features.pooled_BD), features.attributes_BM)


def test_features_and_heads_are_float32_under_autocast():
    model = MMFA(SMALL, num_ids=7, num_attributes=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.backbone(images(2)).dtype == torch.bfloat16
        assert {value.dtype for value in model(images(2)) if value is not None} == {torch.float32}
        assert model.embed(images(2)).dtype == torch.float32


@pytest.mark.parametrize("training", [False, True])
def test_grouped_attribute_heads_equal_separate_ones(training):
    heads = AttributeHeads(6, 3, width=4, dropout=0.0).train(training)
    pooled = torch.randn(5, 6)
    linear, norm = heads.hidden[0], heads.hidden[1]
    norm.weight.data.uniform_(0.5, 2)
    norm.running_mean.uniform_(-1, 1)
    expected, hiddens = [], []
    for m in range(3):
        rows = slice(4 * m, 4 * m + 4)
        hidden = torch.nn.functional.linear(pooled, linear.weight[rows], linear.bias[rows])
        hidden = torch.nn.functional.batch_norm(
            hidden,
            norm.running_mean[rows].clone(),
            norm.running_var[rows].clone(),
            norm.weight[rows],
            norm.bias[rows],
            training,
        )
        hidden = torch.where(hidden > 0, hidden, 0.1 * hidden)
        hiddens.append(hidden)
        expected.append((hidden * heads.weight_MH[m]).sum(1) + heads.bias_M[m])
    outputs, found = heads(pooled)
    assert torch.allclose(outputs, torch.stack(expected, dim=1), atol=1e-6)
    assert torch.allclose(found, torch.stack(hiddens, dim=1), atol=1e-6)


def test_hidden_attribute_features_are_those_before_dropout():
    config = dataclasses.replace(SMALL, attr_head_width=8, attribute_features="hidden", dropout=0.9)
    model = MMFA(config, num_ids=7, num_attributes=3)
    features = model(images(6))
    heads = model.attribute_heads
    assert torch.equal(features.hidden_BMH.flatten(1), heads.hidden(features.pooled_BD))
    assert torch.equal(features.aligned_attributes(), features.hidden_BMH)
    model.eval()
    features = model(images(6))
    assert torch.allclose((features.hidden_BMH * heads.weight_MH).sum(2) + heads.bias_M, features.attributes_BM)
    logits = MMFA(dataclasses.replace(config, attribute_features="logit"), num_ids=7, num_attributes=3)(images(6))
    assert logits.hidden_BMH is None
    assert torch.equal(logits.aligned_attributes(), logits.attributes_BM[:, :, None])


def test_a_head_of_width_0_is_batchnorm_dropout_linear():
    for head in (AttributeHeads(6, 3, width=0, dropout=0.5).output, identity_head(6, 3, width=0, dropout=0.5)):
        assert [type(module) for module in head] == [torch.nn.BatchNorm1d, torch.nn.Dropout, torch.nn.Linear]
    kinds = [type(module).__name__ for module in identity_head(6, 3, width=4, dropout=0.5)]
    assert kinds == ["Linear", "BatchNorm1d", "LeakyReLU", "Dropout", "Linear"]


def test_no_attributes_is_no_head():
    model = MMFA(SMALL, num_ids=7, num_attributes=0)
    assert model(images(2)).attributes_BM.shape == (2, 0)
    assert not list(model.attribute_heads.parameters())


def test_weights_none_is_a_random_start():
    assert resolve_weights(SMALL) is None


def test_weights_from_a_file_with_or_without_the_classifier(tmp_path):
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(theirs, tmp_path / "w.pth")
    config = ModelConfig(backbone="resnet18", weights=str(tmp_path / "w.pth"))
    found = resolve_weights(config)
    assert set(found) == {name for name in theirs if not name.startswith("fc.")}
    build_backbone(config).load_state_dict(found)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(build_backbone(SMALL).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"exactly the tensors of resnet18.*missing, unknown or of another shape"):
        resolve_weights(ModelConfig(backbone="resnet18", weights=str(tmp_path / "w.pth")))


@pytest.mark.parametrize("content", [None, b"", b"not a state dict"])
def test_weights_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "w.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"w\.pth' cannot be read"):
        resolve_weights(ModelConfig(backbone="resnet18", weights=str(path)))


def test_a_pickle_with_code_is_not_run(tmp_path):
    torch.save({"conv1.weight": print}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve_weights(ModelConfig(backbone="resnet18", weights=str(tmp_path / "w.pth")))


def test_weights_that_are_no_state_dict(tmp_path):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="names to tensors"):
        resolve_weights(ModelConfig(backbone="resnet18", weights=str(tmp_path / "w.pth")))


def test_imagenet_weights_do_not_exist_for_the_small_network():
    with pytest.raises(ConfigError, match="'imagenet' exists for resnet50 and resnet18"):
        resolve_weights(dataclasses.replace(SMALL, weights="imagenet"))


def test_imagenet_weights_come_from_the_hub_folder_or_the_error_names_both_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / "resnet18-f37072fd.pth"
    file.write_bytes(b"truncated")
    with pytest.raises(ConfigError) as caught:
        resolve_weights(ModelConfig(backbone="resnet18"))
    assert f"place {file.name} in {folder}" in str(caught.value)
    assert "--weights FILE" in str(caught.value)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    assert "conv1.weight" in resolve_weights(ModelConfig(backbone="resnet18"))


def test_imagenet_weights_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"nor downloaded.*place resnet50-0676ba61\.pth in .*checkpoints"):
        resolve_weights(ModelConfig())
