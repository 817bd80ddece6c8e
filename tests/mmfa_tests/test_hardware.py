"""Hardware: what ``auto`` comes to, and that no training leaves torch's switches as it needs them."""

import pytest
import torch

from mmfa.config import RunConfig
from mmfa.hardware import Hardware, deterministic

CPU = torch.device("cpu")


@pytest.mark.parametrize("compile", ["auto", "on", "off"])
def test_only_a_gpu_compiles(compile):
    """A model that was compiled in its training is evaluated on a CPU too: only a training refuses ``on`` there."""
    assert not Hardware.choose("cpu", RunConfig(compile=compile)).compiled


def test_tf32_is_used_nowhere_and_torch_is_left_as_it_was():
    def switches():
        cudnn = torch.backends.cudnn
        return cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before, state = switches(), torch.get_rng_state()
    with deterministic(CPU, seed=(1, 2)):
        assert switches() == (True, False, False, False)
        torch.rand(3)
    assert switches() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_bf16_decides_the_layout_unless_it_is_told():
    for precision, layout, expected in (
        ("bf16", "auto", True), ("fp32", "auto", False), ("bf16", "off", False), ("fp32", "on", True),
    ):  # fmt: skip
        assert Hardware.choose("cpu", RunConfig(precision=precision, channels_last=layout)).channels_last == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_compiles_unless_it_is_told_not_to():
    assert Hardware.choose("cuda").compiled and not Hardware.choose("cuda", RunConfig(compile="off")).compiled
