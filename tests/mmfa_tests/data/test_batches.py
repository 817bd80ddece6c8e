"""Batches: orders, labels, augmentation and the prefetch thread."""

import dataclasses
import threading
import time

import numpy as np
import pytest
import torch

from mmfa.config import DataConfig
from mmfa.data.attributes import MARKET_FIELDS, encode
from mmfa.data.augment import Draws, augment, crop_resize, draw, normalise, pad_crop, padding, prepare, resample, resize
from mmfa.data.batches import Batches
from mmfa.data.pixels import Pixels
from mmfa.data.prefetch import prefetch
from mmfa.data.records import AttributeCodes, Domain
from mmfa.data.splits import held_out_pids
from mmfa.data.store import Store
from mmfa.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def memory_store(*, num_ids=12, images=4, size=(16, 16), attributes=True, first_pid=10):
    """A store whose image n is painted (n, pid, n)."""
    num = num_ids * images
    pids = first_pid + np.arange(num) // images
    rng = np.random.default_rng(first_pid)
    codes = AttributeCodes(
        fields=MARKET_FIELDS,
        pids=np.arange(first_pid, first_pid + num_ids),
        codes=rng.integers(0, 3, (num_ids, 27), dtype=np.uint8),
    )
    domain = Domain(
        name=f"memory{first_pid}",
        paths=tuple(f"{n:05d}.jpg" for n in range(num)),
        pids=pids,
        camids=np.arange(num) % 2,
        splits=np.full(num, "train", dtype="<U11"),
        attributes=codes if attributes else None,
    )
    paint = np.stack([np.arange(num), pids, np.arange(num)], axis=1).astype(np.uint8)
    pixels = np.broadcast_to(paint[:, None, None], (num, *size, 3)).copy()
    pixels.flags.writeable = False
    return Store(path=None, domain=domain, images=pixels, fingerprint="memory")


def config_of(**changes):
    sizes = {"image_height": 16, "image_width": 16, "store_height": 16, "store_width": 16}
    defaults = {**sizes, "source_batch": 8, "target_batch": 6, "num_val_ids": 2}
    return DataConfig(**{**defaults, **changes})


def batches_of(config=None, *, source=None, target=None, seed=0, channels_last=False):
    return Batches(
        config or config_of(crop="random_area"),
        source=source or memory_store(),
        target=target or memory_store(num_ids=5, first_pid=100),
        seed=seed,
        device=torch.device("cpu"),
        channels_last=channels_last,
    )


def painted(images_BCHW, channel=0):
    """Read back which image each one is; every crop of a painted image is that colour."""
    values = images_BCHW[:, channel] * STD[channel] + MEAN[channel]
    rows = (values * 255).round().to(torch.int64)
    assert (rows == rows[:, :1, :1]).all()
    return rows[:, 0, 0].numpy()


def test_an_epoch_takes_every_source_image_at_most_once_and_drops_the_last_partial_batch():
    batches = batches_of()
    held_out = held_out_pids(np.arange(10, 22), num_ids=2)
    assert batches.num_steps == (10 * 4) // 8
    np.testing.assert_array_equal(batches.train_pids, np.setdiff1d(np.arange(10, 22), held_out))
    seen = np.concatenate([painted(batch.source_BCHW) for batch in batches.epoch(0)])
    wanted = np.flatnonzero(~np.isin(memory_store().domain.pids, held_out))
    np.testing.assert_array_equal(np.sort(seen), wanted)
    partial = batches_of(config_of(crop="random_area", source_batch=9))
    seen = np.concatenate([painted(batch.source_BCHW) for batch in partial.epoch(0)])
    assert partial.num_steps == 4 and len(np.unique(seen)) == len(seen) == 36


def test_labels_attributes_and_masks_belong_to_the_images():
    batches = batches_of(config_of(crop="random_area", age="binary"))
    table = encode(memory_store().domain.attributes, age="binary")
    assert batches.attribute_names == table.names
    for batch in batches.epoch(3):
        pids = painted(batch.source_BCHW, channel=1)
        np.testing.assert_array_equal(batches.train_pids[batch.labels_B.numpy()], pids)
        values, mask = table.rows(pids)
        np.testing.assert_array_equal(batch.attributes_BM.numpy(), values)
        np.testing.assert_array_equal(batch.mask_BM.numpy(), mask)
        assert batch.labels_B.dtype == torch.int64 and batch.mask_BM.dtype == torch.bool
        assert batch.attributes_BM.dtype == batch.source_BCHW.dtype == torch.float32


def test_a_source_without_annotations_has_no_attribute_columns():
    batches = batches_of(source=memory_store(attributes=False))
    batch = next(iter(batches.epoch(0)))
    assert batches.attribute_names == ()
    assert batch.attributes_BM.shape == batch.mask_BM.shape == (8, 0)


def test_the_target_is_an_endless_stream_of_passes_across_steps_and_epochs():
    batches = batches_of()
    stream = np.concatenate([painted(b.target_BCHW) for epoch in range(4) for b in batches.epoch(epoch)])
    rows = np.flatnonzero(
        ~np.isin(memory_store(num_ids=5, first_pid=100).domain.pids, held_out_pids(np.arange(100, 105), num_ids=2))
    )
    assert len(rows) == 12 and len(stream) == 4 * 5 * 6
    passes = [stream[start : start + 12] for start in range(0, len(stream), 12)]
    for one in passes:
        np.testing.assert_array_equal(np.sort(one), rows)
    assert len({tuple(one) for one in passes}) == len(passes), "each pass has an order of its own"


def test_a_partial_target_batch_runs_on_into_the_next_pass():
    batches = batches_of(config_of(crop="random_area", target_batch=5))
    first = [painted(batch.target_BCHW) for batch in batches.epoch(0)]
    assert {len(rows) for rows in first} == {5}
    assert len(np.unique(np.concatenate(first)[:12])) == 12


def as_arrays(batches):
    return [[None if part is None else part.numpy().copy() for part in batch] for batch in batches]


@pytest.mark.parametrize("crop", ["random_area", "pad"])
def test_a_run_resumed_at_an_epoch_equals_one_that_was_never_stopped(crop):
    config = config_of(crop=crop)
    straight = batches_of(config)
    for epoch in range(3):
        wanted = as_arrays(straight.epoch(epoch))
    found = as_arrays(batches_of(config).epoch(2))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        for part, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, same)


def test_epochs_and_seeds_differ():
    orders = {
        tuple(np.concatenate([painted(batch.source_BCHW) for batch in batches_of(seed=seed).epoch(epoch)]))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_without_the_target_the_source_is_the_same():
    without = list(batches_of(config_of(crop="pad", use_target=False)).epoch(1))
    assert all(batch.target_BCHW is None for batch in without)
    for one, other in zip(without, batches_of(config_of(crop="pad")).epoch(1), strict=True):
        torch.testing.assert_close(one.source_BCHW, other.source_BCHW, rtol=0, atol=0)


def test_the_global_generators_are_not_touched():
    torch.manual_seed(5)
    np.random.seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(batches_of().epoch(0))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)


def test_too_small_a_dataset_is_an_error():
    with pytest.raises(DataError, match="data.source_batch=64 and memory10 has 40 training images"):
        batches_of(config_of(source_batch=64))
    with pytest.raises(DataError, match="data.target_batch=64 and memory100 has 12 training images"):
        batches_of(config_of(target_batch=64))
    with pytest.raises(DataError, match="num_val_ids=3 of 5"):
        batches_of(config_of(num_val_ids=3))


def test_a_batch_is_the_same_wherever_the_pixels_wait():
    waiting, resident = batches_of(), batches_of()
    stores = {"source": memory_store(), "target": memory_store(num_ids=5, first_pid=100)}
    resident.pixels = {
        name: Pixels(store.images, device=torch.device("cpu"), resident=True) for name, store in stores.items()
    }
    for _ in range(2):  # a second pass over the same pixels: no batch has written to them
        for one, other in zip(waiting.epoch(1), resident.epoch(1), strict=True):
            assert all(map(torch.equal, one, other))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("placement", ["host", "device"])
def test_batches_made_on_a_gpus_own_stream_are_those_of_a_cpu(placement):
    config = config_of(crop="pad", placement=placement)
    given = {"source": memory_store(), "target": memory_store(num_ids=5, first_pid=100), "seed": 0}
    found = Batches(config, **given, device=torch.device("cuda"), channels_last=True)
    plain = batches_of(config_of(crop="pad"), channels_last=True)
    for one, other in zip(found.epoch(0), plain.epoch(0), strict=True):
        assert all(part.is_cuda for part in one)
        assert all(torch.allclose(part.cpu(), same) for part, same in zip(one, other, strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_format_is_as_asked(channels_last):
    batch = next(iter(batches_of(channels_last=channels_last).epoch(0)))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for images in (batch.source_BCHW, batch.target_BCHW):
        assert images.shape[1:] == (3, 16, 16) and images.is_contiguous(memory_format=layout)
    plain = next(iter(batches_of(channels_last=not channels_last).epoch(0)))
    torch.testing.assert_close(batch.source_BCHW, plain.source_BCHW)


# Augmentation


def random_images(num=6, height=20, width=12, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (num, height, width, 3), dtype=np.uint8))


def test_normalise_is_imagenets():
    images = random_images()
    wanted = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    for channels_last in (False, True):
        torch.testing.assert_close(normalise(images, channels_last=channels_last), wanted, atol=1e-5, rtol=1e-5)


def test_pad_and_cut_back_against_plain_loops():
    images = random_images(height=32, width=16).numpy()
    rng = np.random.default_rng(1)
    pad = padding(32)
    boxes = np.concatenate([rng.integers(0, 2 * pad + 1, (6, 2)), np.full((6, 2), (32, 16))], axis=1)
    boxes[0, :2], boxes[1, :2] = (0, 0), (2 * pad, 2 * pad)
    found = pad_crop(torch.from_numpy(images), boxes).numpy()
    for b, (top, left, _, _) in enumerate(boxes):
        for y in range(32):
            for x in range(16):
                from_y, from_x = y + top - pad, x + left - pad
                inside = 0 <= from_y < 32 and 0 <= from_x < 16
                assert (found[b, y, x] == (images[b, from_y, from_x] if inside else 0)).all()


def loop_resize(image, box, height, width):
    """Antialiased bilinear resizing of a box, pixel by pixel."""
    top, left, box_height, box_width = box

    def weights(to, to_size, from_size):
        scale = from_size / to_size
        centre, support = (to + 0.5) * scale, max(scale, 1.0)
        raw = [max(0.0, 1 - abs(at + 0.5 - centre) / support) for at in range(from_size)]
        return [weight / sum(raw) for weight in raw]

    out = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            for from_y, weight_y in enumerate(weights(y, height, box_height)):
                for from_x, weight_x in enumerate(weights(x, width, box_width)):
                    if weight_x * weight_y:
                        out[y, x] += weight_x * weight_y * image[top + from_y, left + from_x]
    return out


@pytest.mark.parametrize(("height", "width"), [(24, 20), (10, 6), (20, 12)])
@pytest.mark.parametrize("function", [crop_resize, resample])
def test_boxes_are_resized_as_by_plain_loops(function, height, width):
    images = random_images(num=3)
    boxes = np.array([[0, 0, 20, 12], [3, 1, 14, 9], [6, 2, 11, 10]])
    found = function(images, boxes, height=height, width=width)
    assert found.dtype == torch.uint8 and found.shape == (3, height, width, 3)
    for b in range(3):
        wanted = loop_resize(images[b].numpy(), boxes[b], height, width)
        assert np.abs(found[b].numpy() - wanted).max() <= 1.001


def test_a_flip_mirrors_the_drawn_images_and_no_others():
    images = random_images(num=4, height=16, width=16)
    config = config_of(crop="random_area")
    boxes = np.broadcast_to(np.array([0, 0, 16, 16]), (4, 4))
    flips = np.array([True, False, True, False])
    found = augment(images, Draws(boxes_B4=boxes, flips_B=flips), config).numpy()
    for b in range(4):
        for x in range(16):
            np.testing.assert_array_equal(found[b, :, x], images[b, :, 15 - x if flips[b] else x])


@pytest.mark.parametrize("crop", ["random_area", "pad"])
def test_an_image_is_resized_before_or_with_its_crop(crop):
    config = config_of(crop=crop, image_height=32, image_width=16)
    images = random_images(height=64, width=32)
    draws = draw(config, np.random.default_rng(0), num=6, stored=(64, 32))
    found = augment(images, draws, config)
    assert found.shape == (6, 32, 16, 3)
    if crop == "pad":
        unflipped = Draws(boxes_B4=draws.boxes_B4, flips_B=np.zeros(6, dtype=bool))
        wanted = pad_crop(resize(images, height=32, width=16), draws.boxes_B4)
        torch.testing.assert_close(augment(images, unflipped, config), wanted, rtol=0, atol=0)


def test_drawn_areas_and_aspects_are_in_range():
    config = config_of(crop="random_area", flip=0.25)
    draws = draw(config, np.random.default_rng(0), num=20_000, stored=(128, 64))
    top, left, height, width = draws.boxes_B4.T
    assert top.min() == left.min() == 0
    assert (top + height).max() == 128 and (left + width).max() == 64
    area, aspect = height * width / (128 * 64), (width / 64) / (height / 128)
    assert 0.63 < area.min() < 0.65 and area.max() > 0.98
    assert 0.73 < aspect.min() < 0.77 and 1.31 < aspect.max() < 1.36
    assert abs(draws.flips_B.mean() - 0.25) < 0.01
    for flip in (0.0, 1.0):
        assert set(draw(config_of(flip=flip), np.random.default_rng(0), num=50, stored=(16, 16)).flips_B) == {flip == 1}


def test_drawn_offsets_reach_both_ends():
    draws = draw(
        config_of(crop="pad", image_height=64, image_width=32), np.random.default_rng(0), num=900, stored=(9, 9)
    )
    assert set(draws.boxes_B4[:, 0]) == set(draws.boxes_B4[:, 1]) == set(range(2 * 4 + 1))


@pytest.mark.parametrize("as_array", [True, False])
def test_prepare_resizes_only_where_sizes_differ(as_array):
    images = random_images(height=32, width=16)
    given = images.numpy() if as_array else images
    torch.testing.assert_close(prepare(given, height=32, width=16), normalise(images, channels_last=False))
    half = prepare(given, height=16, width=8, channels_last=True)
    torch.testing.assert_close(half, normalise(resize(images, height=16, width=8), channels_last=True))
    if as_array:
        given.flags.writeable = False  # as a store's images are
        torch.testing.assert_close(prepare(given, height=32, width=16), normalise(images, channels_last=False))


# Prefetch


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "mmfa-prefetch"]


def test_prefetch_keeps_the_order_and_its_thread_ends():
    assert list(prefetch(iter(range(50)))) == list(range(50))
    assert not prefetch_threads()


def test_prefetch_is_bounded():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    ahead = prefetch(items(), depth=2)
    assert next(ahead) == 0
    time.sleep(0.1)
    assert len(made) <= 3
    ahead.close()
    assert not prefetch_threads()


def test_the_thread_ends_when_the_consumer_stops_early():
    for _ in batches_of().epoch(0):
        break
    epoch = batches_of().epoch(0)
    next(epoch)
    assert prefetch_threads()
    epoch.close()
    assert not prefetch_threads()


def test_an_error_in_the_thread_reaches_the_consumer_after_the_items_before_it():
    def items():
        yield 1
        raise DataError("broken")

    ahead = prefetch(items())
    assert next(ahead) == 1
    with pytest.raises(DataError, match="broken"):
        next(ahead)
    assert not prefetch_threads()


def without_annotation(store, pids):
    attributes = store.domain.attributes
    kept = ~np.isin(attributes.pids, pids)
    fewer = dataclasses.replace(attributes, pids=attributes.pids[kept], codes=attributes.codes[kept])
    return dataclasses.replace(store, domain=dataclasses.replace(store.domain, attributes=fewer))


def test_only_identities_that_are_trained_need_annotation():
    source = memory_store()
    held_out = held_out_pids(source.domain.train_pids, num_ids=2)
    batches = batches_of(source=without_annotation(source, held_out))
    assert len(next(iter(batches.epoch(0))).mask_BM) == 8
    with pytest.raises(DataError, match=f"identity {batches.train_pids[3]} is not in the attribute table"):
        batches_of(source=without_annotation(source, batches.train_pids[3:4]))
    target = memory_store(num_ids=5, first_pid=100)
    batches_of(target=without_annotation(target, target.domain.train_pids))
