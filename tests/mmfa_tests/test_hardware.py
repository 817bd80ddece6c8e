"""Hardware: what ``auto`` comes to, and that no training leaves torch's switches as it needs them."""

import numpy as np
import pytest
import torch

from mmfa.config import RunConfig
from mmfa.evaluate import embed
from mmfa.hardware import Hardware, deterministic
from mmfa.model import build

CPU = torch.device("cpu")


@pytest.mark.parametrize("compile", ["auto", "on", "off"])
def test_only_a_gpu_compiles(compile):
    """A model that was compiled in its training is evaluated on a CPU too: only a training refuses ``on`` there."""
    assert not Hardware.choose("cpu", RunConfig(compile=compile)).compiled


def switches():
    cudnn = torch.backends.cudnn
    return cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_a_training_takes_no_tf32_and_leaves_torch_as_it_was():
    before, state = switches(), torch.get_rng_state()
    with deterministic(CPU, seed=(1, 2)):
        assert switches() == (True, False, False, False)
        torch.rand(3)
    assert switches() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_embedded_without_tf32_whoever_asks(tiny, target):
    """The official test, the label-free probe and retrieval run outside of a training's epochs."""
    model, before, seen = build(tiny, num_ids=2, num_attributes=0), switches(), []
    model.backbone.register_forward_pre_hook(lambda *_: seen.append(switches()))
    hardware = Hardware.choose("cpu", tiny.run)
    embed(model, target.images, np.arange(3), height=32, width=16, hardware=hardware)
    assert seen == [(True, False, False, False)] and switches() == before


def test_the_layout_of_a_cpu_unless_it_is_told():
    for precision, layout, expected in (
        ("bf16", "auto", True), ("fp32", "auto", True), ("bf16", "off", False), ("fp32", "off", False),
    ):  # fmt: skip
        assert Hardware.choose("cpu", RunConfig(precision=precision, channels_last=layout)).channels_last == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_compiles_unless_it_is_told_not_to():
    assert Hardware.choose("cuda").compiled and not Hardware.choose("cuda", RunConfig(compile="off")).compiled
