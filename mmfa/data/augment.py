"""Pixels to network input: crop, flip, resize and normalise whole batches as tensor operations.

Shapes: B images, C = 3 channels, h x w as stored, H x W as the network takes them. Images stay uint8 in BHWC, the
store's layout, until they are normalised: bytes travel four times as fast as floats, also to a device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mmfa.config import DataConfig
from mmfa.data.pixels import move
from mmfa.data.records import Bools, Bytes, Ints

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MIN_AREA = 0.64
MAX_ASPECT = 4 / 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """What one batch's augmentation drew."""

    boxes_B4: Ints
    """Top, left, height, width: a box of the stored image (``random_area``) or of the padded one (``pad``)."""
    flips_B: Bools
    """Whether the image is mirrored."""


def draw(config: DataConfig, generator: np.random.Generator, *, num: int, stored: tuple[int, int]) -> Draws:
    """Draw crops and flips for ``num`` images of the stored (height, width)."""
    boxes = (
        _draw_areas(generator, num=num, stored=stored)
        if config.crop == "random_area"
        else _draw_offsets(generator, num=num, size=(config.image_height, config.image_width))
    )
    return Draws(boxes_B4=boxes, flips_B=generator.random(num) < config.flip)


def padding(height: int) -> int:
    """Return the pixels added on each side before ``pad`` cuts back: a sixteenth of the height."""
    return height // 16


def _draw_areas(generator: np.random.Generator, *, num: int, stored: tuple[int, int]) -> Ints:
    """As torchvision's RandomResizedCrop, its aspect relative to the image's and clipped to it instead of redrawn."""
    height, width = stored
    area = generator.uniform(MIN_AREA, 1.0, num)
    aspect = np.exp(generator.uniform(-np.log(MAX_ASPECT), np.log(MAX_ASPECT), num))
    heights = np.clip(np.rint(height * np.sqrt(area / aspect)), 1, height).astype(np.int64)
    widths = np.clip(np.rint(width * np.sqrt(area * aspect)), 1, width).astype(np.int64)
    tops = generator.integers(0, height - heights, endpoint=True)
    lefts = generator.integers(0, width - widths, endpoint=True)
    return np.stack([tops, lefts, heights, widths], axis=1)


def _draw_offsets(generator: np.random.Generator, *, num: int, size: tuple[int, int]) -> Ints:
    offsets = generator.integers(0, 2 * padding(size[0]), (num, 2), endpoint=True)
    return np.concatenate([offsets, np.broadcast_to(np.array(size), (num, 2))], axis=1)


def augment(images_BhwC: Tensor, draws: Draws, config: DataConfig) -> Tensor:
    """Crop, resize and flip as drawn: uint8 [B, h, w, 3] to uint8 [B, H, W, 3]."""
    height, width = config.image_height, config.image_width
    if config.crop == "random_area":
        images_BHWC = crop_resize(images_BhwC, draws.boxes_B4, height=height, width=width)
    else:
        images_BHWC = pad_crop(resize(images_BhwC, height=height, width=width), draws.boxes_B4)
    return flip(images_BHWC, draws.flips_B)


def flip(images_BHWC: Tensor, flips_B: Bools) -> Tensor:
    """Mirror some of the images: on a CPU, copying all takes a ninth of the time of writing those back in place."""
    chosen, order = np.flatnonzero(flips_B), np.arange(len(flips_B))
    order[chosen] = len(flips_B) + np.arange(len(chosen))
    mirrored_BHWC = images_BHWC.index_select(0, move(chosen, images_BHWC.device)).flip(2)
    return torch.cat([images_BHWC, mirrored_BHWC]).index_select(0, move(order, images_BHWC.device))


def pad_crop(images_BHWC: Tensor, boxes_B4: Ints) -> Tensor:
    """Pad with black on each side and cut back to the size that came."""
    num, height, width, channels = images_BHWC.shape
    pad = padding(height)
    padded = functional.pad(images_BHWC, (0, 0, pad, pad, pad, pad))
    padded_height, padded_width = height + 2 * pad, width + 2 * pad
    # Every run of `width` neighbouring pixels as one row of a view: copying rows is ten times as fast as pixels.
    runs = padded.as_strided((num * padded_height * padded_width - width + 1, width * channels), (channels, 1))
    rows = np.arange(num)[:, None] * padded_height + boxes_B4[:, :1] + np.arange(height)
    starts = move((rows * padded_width + boxes_B4[:, 1:2]).ravel(), images_BHWC.device)
    return runs.index_select(0, starts).view(images_BHWC.shape)


def resize(images_BhwC: Tensor, *, height: int, width: int) -> Tensor:
    """Resize uint8 images, antialiased bilinear; images of the right size are returned as they came."""
    num, from_height, from_width = images_BhwC.shape[:3]
    if (from_height, from_width) == (height, width):
        return images_BhwC
    if images_BhwC.device.type == "cpu":
        return _interpolate(images_BhwC, height, width)
    whole = np.broadcast_to(np.array([0, 0, from_height, from_width]), (num, 4))
    return crop_resize(images_BhwC, whole, height=height, width=width)


def crop_resize(images_BhwC: Tensor, boxes_B4: Ints, *, height: int, width: int) -> Tensor:
    """Cut one box out of each uint8 image and resize it, antialiased bilinear, to uint8 [B, H, W, 3].

    On the CPU one native call per image (ten times as fast as any batched form there), elsewhere two batched
    matrix products with the same weights; they agree within a grey level.
    """
    if images_BhwC.device.type == "cpu":
        crops = (
            _interpolate(image_hwC[None, top : top + h, left : left + w], height, width)
            for image_hwC, (top, left, h, w) in zip(images_BhwC, boxes_B4.tolist(), strict=True)
        )
        return torch.cat(list(crops))
    return resample(images_BhwC, boxes_B4, height=height, width=width)


def resample(images_BhwC: Tensor, boxes_B4: Ints, *, height: int, width: int) -> Tensor:
    """The batched form of :func:`crop_resize`, on any device."""
    num, from_height, from_width, channels = images_BhwC.shape
    boxes = move(boxes_B4.astype(np.float32), images_BhwC.device)
    vertical_BHh = _weights(boxes[:, 0], boxes[:, 2], from_size=from_height, to_size=height)
    horizontal_BWw = _weights(boxes[:, 1], boxes[:, 3], from_size=from_width, to_size=width)
    rows_BHwC = (vertical_BHh @ images_BhwC.float().flatten(2)).view(num, height, from_width, channels)
    # One product an image: weights that are broadcast over H would be copied H times.
    columns_BwX = rows_BHwC.transpose(1, 2).reshape(num, from_width, height * channels)
    images_BWHC = (horizontal_BWw @ columns_BwX).view(num, width, height, channels)
    return images_BWHC.round_().clamp_(0, 255).to(torch.uint8).transpose(1, 2).contiguous()


def _weights(starts_B: Tensor, sizes_B: Tensor, *, from_size: int, to_size: int) -> Tensor:
    """Return [B, to_size, from_size] triangle-filter weights that sum to 1 over the box."""
    scale_B11 = (sizes_B / to_size)[:, None, None]
    support_B11 = scale_B11.clamp(min=1.0)
    to = torch.arange(to_size, device=starts_B.device)[None, :, None] + 0.5
    at = torch.arange(from_size, device=starts_B.device)[None, None] + 0.5 - starts_B[:, None, None]
    weights = (1 - (at - to * scale_B11).abs() / support_B11).clamp_(min=0)
    weights = weights * ((at > 0) & (at < sizes_B[:, None, None]))
    return weights / weights.sum(-1, keepdim=True)


def _interpolate(images_BhwC: Tensor, height: int, width: int) -> Tensor:
    images_BChw = images_BhwC.permute(0, 3, 1, 2)
    resized = functional.interpolate(images_BChw, size=(height, width), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous()


def normalise(images_BHWC: Tensor, *, channels_last: bool) -> Tensor:
    """Turn uint8 [B, H, W, 3] into float32 [B, 3, H, W] of ImageNet's mean and deviation, in either memory format."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    scale_C, shift_C = (move(values.numpy(), images_BHWC.device) for values in (1 / (255 * std), -mean / std))
    if not channels_last:
        images_BCHW = images_BHWC.permute(0, 3, 1, 2).contiguous().float()
        return images_BCHW.mul_(scale_C[:, None, None]).add_(shift_C[:, None, None])
    num, height, width, channels = images_BHWC.shape
    rows = images_BHWC.reshape(num, height, width * channels).float()  # long rows: 4x as fast as rows of three
    torch.addcmul(shift_C.repeat(width), rows, scale_C.repeat(width), out=rows)  # fresh memory would cost 20x as much
    return rows.view(num, height, width, channels).permute(0, 3, 1, 2)


def prepare(images_NhwC: Bytes | Tensor, *, height: int, width: int, channels_last: bool = False) -> Tensor:
    """Turn stored images into the network's input for evaluation, without augmentation.

    Args:
        images_NhwC: uint8 [N, h, w, 3], an array or a tensor on any device.
        height: of the result; images of another size are resized, antialiased bilinear.
        width: of the result.
        channels_last: memory format of the result.

    Returns:
        float32 [N, 3, H, W], normalised by ImageNet's mean and deviation.
    """
    if not isinstance(images_NhwC, Tensor):
        images_NhwC = torch.from_numpy(images_NhwC if images_NhwC.flags.writeable else images_NhwC.copy())
    return normalise(resize(images_NhwC, height=height, width=width), channels_last=channels_last)
