"""Pixels: the same images wherever they wait, and where that is."""

import numpy as np
import pytest
import torch

from mmfa.data import pixels
from mmfa.data.pixels import Pixels, fits, move, place
from mmfa.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture
def images():
    made = np.random.default_rng(0).integers(0, 256, (40, 8, 4, 3), dtype=np.uint8)
    made.flags.writeable = False  # as a mapped store is
    return made


@pytest.mark.parametrize("resident", [False, True])
def test_rows_are_copies_of_the_images_in_the_order_asked_for(images, resident, monkeypatch):
    monkeypatch.setattr(pixels, "_CHUNK", 16)  # the last one is partial
    held = Pixels(images, device=CPU, resident=resident)
    rows = np.array([7, 0, 39, 7])
    for _ in range(2):
        found = held.rows(rows)
        assert found.dtype == torch.uint8
        np.testing.assert_array_equal(found.numpy(), images[rows])
        found.zero_()  # what is asked for again is not what was written to


def test_on_a_cpu_images_stay_where_they_are_and_a_gpu_cannot_be_asked_for(images):
    for placement in ("auto", "host"):
        found = place({"source": images, "target": images}, placement=placement, device=CPU)
        assert set(found) == {"source", "target"} and not any(held.resident for held in found.values())
    with pytest.raises(ConfigError, match=r"data\.placement='device' .* runs on cpu; set it to 'auto' or 'host'"):
        place({"source": images}, placement="device", device=CPU)


def test_they_fit_in_a_quarter_of_what_is_free():
    assert fits(25, free=100) and not fits(26, free=100) and not fits(1, free=-5)


def test_moving_keeps_values_and_types():
    for array in (np.arange(3), np.zeros((2, 0), np.float32), np.array([True, False])):
        moved = move(array, CPU)
        np.testing.assert_array_equal(moved.numpy(), array)
        assert moved.numpy().dtype == array.dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("placement", ["auto", "host", "device"])
def test_on_a_gpu_the_rows_arrive_wherever_they_waited(images, placement):
    device = torch.device("cuda")
    found = place({"source": images, "target": images}, placement=placement, device=device)
    assert found["source"] is found["target"] and found["source"].resident == (placement != "host")
    rows = np.array([5, 5, 1])
    np.testing.assert_array_equal(found["source"].rows(rows).cpu().numpy(), images[rows])
