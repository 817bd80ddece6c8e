"""Feature extractors: torchvision's ResNets up to their last maps, the embedded pair's small network, their start.

torchvision is imported where a ResNet is built and nowhere else: it takes as long to import as torch.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmfa.config import Backbone, ModelConfig
from mmfa.errors import ConfigError

if TYPE_CHECKING:
    import torchvision

SMALL_WIDTHS = (16, 32, 64, 128)
"""Channels of the four stages of the embedded pair's backbone."""

_PUBLISHED = {"resnet50": "ResNet50_Weights", "resnet18": "ResNet18_Weights"}


def build_backbone(config: ModelConfig, *, weights: Mapping[str, Tensor] | None = None) -> nn.Sequential:
    """Return the stages up to the last feature maps; parameter names are torchvision's.

    Args:
        config: of the model.
        weights: what it starts from, checked by :func:`resolve_weights`; None: random, from torch's global generator,
            as torchvision initialises its own.
    """
    if config.backbone == "small":
        backbone = _small_backbone(last_stride=config.last_stride)
        if weights is not None:
            backbone.load_state_dict(weights, strict=False)
        return backbone
    backbone = copy.deepcopy(_resnet(config.backbone, config.last_stride))
    device = torch.get_default_device()
    if device.type == "meta":
        return backbone
    backbone.to_empty(device=device)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    if weights is None:
        _draw_convolutions(backbone)
    else:
        backbone.load_state_dict(weights, strict=False)
    return backbone


@functools.cache
def _resnet(name: str, last_stride: int) -> nn.Sequential:
    """Return the stages without numbers in them: none are drawn that are drawn again later, or replaced."""
    import torchvision.models

    with torch.device("meta"):
        resnet = getattr(torchvision.models, name)(weights=None)
    _set_last_stride(resnet.layer4[0], last_stride)
    stages = {name: module for name, module in resnet.named_children() if name not in ("avgpool", "fc")}
    return nn.Sequential(OrderedDict(stages))


def _draw_convolutions(backbone: nn.Module) -> None:
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resolve_weights(config: ModelConfig) -> dict[str, Tensor] | None:
    """Return the backbone's starting weights, or None for a random start.

    ``imagenet`` comes from torch hub's cache, or from torchvision's publisher into that cache where there is a network;
    anything else but ``none`` is the path of a state dict in torchvision's naming, with or without a classifier.

    Raises:
        ConfigError: weights that cannot be had, cannot be read, or are not this backbone's.
    """
    if config.weights == "none":
        return None
    found = _published(config) if config.weights == "imagenet" else _from_file(Path(config.weights))
    found = {name: value for name, value in found.items() if not name.startswith("fc.")}
    expected = _shapes(config.backbone)
    wrong = sorted(
        name
        for name in found.keys() | {name for name in expected if not name.endswith("num_batches_tracked")}
        if name not in found or name not in expected or found[name].shape != expected[name]
    )
    if wrong:
        raise ConfigError(
            f"model.weights must hold exactly the tensors of {config.backbone}, but in {config.weights!r} "
            f"{len(wrong)} are missing, unknown or of another shape (the first: {wrong[0]!r}); "
            "give weights of this backbone or set model.backbone to theirs."
        )
    return found


@functools.cache
def _shapes(backbone: Backbone) -> dict[str, torch.Size]:
    with torch.device("meta"):
        built = build_backbone(ModelConfig(backbone=backbone, weights="none"))
    return {name: value.shape for name, value in built.state_dict().items()}


def _published(config: ModelConfig) -> dict[str, Tensor]:
    if config.backbone not in _PUBLISHED:
        raise ConfigError(
            f"model.weights='imagenet' exists for {' and '.join(_PUBLISHED)}, but model.backbone is "
            f"{config.backbone!r}; set model.weights to 'none' or to a file."
        )
    import torchvision.models

    enum: type[torchvision.models.WeightsEnum] = getattr(torchvision.models, _PUBLISHED[config.backbone])
    weights = enum["IMAGENET1K_V1"]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = weights.url.rpartition("/")[2]
    try:
        tensors: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise anything
        raise ConfigError(
            f"the ImageNet weights of {config.backbone} could not be read from {folder} nor downloaded "
            f"({_first_line(error)}): place {file} in {folder}, or name a file with --weights FILE."
        ) from error
    return tensors


def _from_file(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise anything
        raise ConfigError(
            f"model.weights must be 'imagenet', 'none' or the path of a state dict saved by torch.save, "
            f"but {str(path)!r} cannot be read ({_first_line(error)}); check the path or save the file again."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(
            f"model.weights must be a state dict, names to tensors, but {str(path)!r} holds something else; "
            "save it with torch.save(model.state_dict(), FILE)."
        )
    return content


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: torchvision's block of the same name, without its import.

    Args:
        before: channels that come in.
        width: channels that go out.
        stride: of the first convolution, and of the shortcut.
    """

    def __init__(self, before: int, width: int, *, stride: int) -> None:
        super().__init__()
        shortcut: nn.Sequential | None = None
        if before != width or stride != 1:
            shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the maps of the next stage."""
        out_BCHW = self.relu(self.bn1(self.conv1(images_BCHW)))
        out_BCHW = self.bn2(self.conv2(out_BCHW))
        out_BCHW += images_BCHW if self.downsample is None else self.downsample(images_BCHW)
        summed_BCHW: Tensor = self.relu(out_BCHW)
        return summed_BCHW


def _set_last_stride(block: nn.Module, stride: int) -> None:
    strided = block.conv2 if hasattr(block, "conv3") else block.conv1
    assert isinstance(block.downsample, nn.Sequential)
    for convolution in (strided, block.downsample[0]):
        assert isinstance(convolution, nn.Conv2d)
        convolution.stride = (stride, stride)


def _small_backbone(*, last_stride: int) -> nn.Sequential:
    stem = SMALL_WIDTHS[0]
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False),
        bn1=nn.BatchNorm2d(stem),
        relu=nn.ReLU(inplace=True),
    )
    before = stem
    for number, (width, stride) in enumerate(zip(SMALL_WIDTHS, (1, 2, 2, last_stride), strict=True), start=1):
        stages[f"layer{number}"] = nn.Sequential(BasicBlock(before, width, stride=stride))
        before = width
    backbone = nn.Sequential(stages)
    _draw_convolutions(backbone)
    return backbone
