"""A trained model in use: embeddings, the cache of a folder, search, the judgement of one query, pictures."""

import base64
import io
import logging
import os
import threading

import filelock
import numpy as np
import pytest
import torch
from PIL import Image

from mmfa import activation, evaluate, gallery, pictures, retrieval
from mmfa.data import catalog
from mmfa.data.store import build, open_store
from mmfa.errors import CheckpointError, ConfigError, DataError
from mmfa.gallery import embed_folder, find_images
from mmfa.pictures import Cell, Row
from mmfa.ranking import NotFiniteError, distances, rank
from mmfa.retrieval import Embedder, UnreadableError, average_precision, judge, search
from mmfa.training import Training


@pytest.fixture(scope="module")
def exported(source, target, tiny, tmp_path_factory):
    training = Training(tiny, source=source, target=target, device="cpu")
    return training.export(tmp_path_factory.mktemp("export") / "export")


@pytest.fixture(scope="module")
def embedder(exported):
    return Embedder.load(exported, device="cpu")


@pytest.fixture
def people(target, tmp_path):
    """A folder of ten images of the target, in two subfolders, without loss."""
    root = tmp_path / "people"
    for row in range(10):
        file = root / f"cam{row % 2}" / f"{row:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(target.images[row]).save(file)
    return root


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def of_store(embedder, store, rows):
    return evaluate.embed(
        embedder.model, store.images, np.array(rows), height=32, width=16, hardware=embedder.hardware
    ).numpy()


# Embedding


def test_every_kind_of_picture_is_embedded_as_the_evaluation_does(embedder, target, tmp_path):
    images = target.images[:4]
    files = [tmp_path / f"{row}.png" for row in range(4)]
    for file, image in zip(files, images, strict=True):
        file.write_bytes(encoded(image))
    expected = of_store(embedder, target, range(4))
    assert expected.dtype == np.float32 and expected.shape == (4, embedder.model.num_features)
    for given in (files, [encoded(image) for image in images], list(images), images):
        np.testing.assert_array_equal(embedder.embed(given), expected)
    mixed = [files[0], encoded(images[1]), images[2], images[3]]
    np.testing.assert_array_equal(embedder.embed(mixed), expected)


def test_other_sizes_are_resized_as_a_store_resizes_them(embedder, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, (height, width) in enumerate(((97, 40), (20, 11), (32, 16), (50, 200))):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 5, 3), dtype=np.uint8))
        coarse.resize((width, height)).save(folder / f"{number}.jpg")
    dataset = catalog.load(f"folder:{folder}", data_root=None, cache_dir=tmp_path, attributes_required=False)
    store = open_store(build(dataset, cache_dir=tmp_path / "cache", height=32, width=16))
    found = embedder.embed([folder / name for name in store.domain.paths])
    np.testing.assert_allclose(found, of_store(embedder, store, range(4)), atol=1e-6)


def test_no_picture_gives_no_embedding(embedder):
    assert embedder.embed([]).shape == (0, embedder.model.num_features)


def test_more_than_one_batch_keeps_its_order_and_reports_progress(embedder, target, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH", 3)
    told = []
    found = embedder.embed(target.images[:8], progress=lambda what, done, total: told.append((done, total)))
    np.testing.assert_allclose(found, of_store(embedder, target, range(8)), atol=1e-6)
    assert told == [(3, 8), (6, 8), (8, 8)]


def test_exif_orientation_is_followed(embedder, target):
    image = target.images[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = encoded(np.rot90(image).copy(), "PNG", exif=exif)
    np.testing.assert_array_equal(embedder.embed([turned]), embedder.embed([image]))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (b"", "cannot be decoded"),
        (b"no image", "must be an intact JPEG or PNG or BMP, but image 1 cannot be decoded"),
        (encoded(np.zeros((32, 16, 3), np.uint8), "JPEG")[:200], "image 1 cannot be decoded"),
        (encoded(np.zeros((32, 16, 3), np.uint8), "GIF"), "image 1 cannot be decoded"),
        (np.zeros((32, 16, 3), np.float32), r"RGB, uint8 \[H, W, 3\], but image 1 is float32 \[32, 16, 3\]"),
        (np.zeros((32, 16), np.uint8), r"image 1 is uint8 \[32, 16\]"),
        (np.zeros((0, 16, 3), np.uint8), r"image 1 is uint8 \[0, 16, 3\]"),
    ],
)
def test_what_is_no_picture_is_named(embedder, target, given, why):
    with pytest.raises(UnreadableError, match=why):
        embedder.embed([target.images[0], given])


def test_large_pictures_are_decoded_one_after_the_other(embedder, target, monkeypatch):
    rng = np.random.default_rng(0)
    large = [encoded(rng.integers(0, 256, (60, 40, 3), dtype=np.uint8)) for _ in range(12)]
    expected = embedder.embed(large)
    monkeypatch.setattr(retrieval, "LARGE", 2000)
    monkeypatch.setattr(retrieval.os, "cpu_count", lambda: 8)
    decode, now, most = retrieval._decode, [], []

    def watched(content, name):
        now.append(name)
        most.append(len(now))
        try:
            return decode(content, name)
        finally:
            now.remove(name)

    monkeypatch.setattr(retrieval, "_decode", watched)
    np.testing.assert_array_equal(embedder.embed([*large, *target.images[:2]])[:12], expected)
    assert max(most) == 1 and len(most) == 12


def test_a_file_that_is_not_there_is_named(embedder, tmp_path):
    with pytest.raises(UnreadableError, match="but .*gone.jpg is not: No such file"):
        embedder.embed([tmp_path / "gone.jpg"])


def test_a_decompression_bomb_is_refused_before_it_is_decoded(embedder, monkeypatch):
    monkeypatch.setattr(retrieval, "MAX_PIXELS", 100)
    with pytest.raises(UnreadableError, match="may have 100 pixels, but image 0 has 16 x 32"):
        embedder.embed([encoded(np.zeros((32, 16, 3), np.uint8))])


def test_a_folder_that_is_no_model_and_a_device_that_is_none(exported, tmp_path):
    with pytest.raises(CheckpointError, match="is missing"):
        Embedder.load(tmp_path)
    with pytest.raises(ConfigError, match="device must be"):
        Embedder.load(exported, device="tpu-9")


def test_the_fingerprint_follows_the_weights(exported, embedder):
    other = Embedder.load(exported, device="cpu")
    assert other.fingerprint == embedder.fingerprint and len(other.fingerprint) == 12
    changed = Embedder.load(exported, device="cpu")
    with torch.no_grad():
        next(changed.model.parameters()).add_(1e-3)
    assert changed.fingerprint != embedder.fingerprint


# A folder, embedded once


def no_embedding(*_, **__):
    raise AssertionError("nothing was to be embedded")


def test_images_are_found_below_a_folder_in_order(people):
    (people / ".thumbnails").mkdir()
    (people / ".thumbnails" / "00.png").write_bytes(b"")
    (people / ".hidden.png").write_bytes(b"")
    (people / "notes.txt").write_text("none of ours")
    (people / "Z.JPG").write_bytes(b"")
    assert find_images(people) == [
        "Z.JPG",
        *(f"cam{parity}/{row:02d}.png" for parity in (0, 1) for row in range(parity, 10, 2)),
    ]


def test_a_folder_without_images_and_what_is_no_folder(tmp_path, people):
    with pytest.raises(DataError, match="but .*nowhere is not there"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"00.png is a file"):
        find_images(people / "cam0" / "00.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has none; images end in .jpg, .jpeg, .png, .bmp"):
        find_images(tmp_path / "empty")


def test_a_folder_is_embedded_once(embedder, target, people, tmp_path, monkeypatch):
    told = []
    first = embed_folder(embedder, people, cache_dir=tmp_path / "cache", progress=lambda *given: told.append(given))
    assert first.num_cached == 0 and first.skipped == () and told[-1] == ("embedding people", 10, 10)
    rows = [int(name[-6:-4]) for name in first.names]
    np.testing.assert_array_equal(first.features_GD, of_store(embedder, target, rows))
    monkeypatch.setattr(evaluate, "embed", no_embedding)
    again = embed_folder(embedder, people, cache_dir=tmp_path / "cache")
    assert again.num_cached == 10 and again.names == first.names and again.folder == people
    np.testing.assert_array_equal(again.features_GD, first.features_GD)


def test_only_what_changed_is_embedded_again(embedder, target, people, tmp_path):
    cache = tmp_path / "cache"
    before = embed_folder(embedder, people, cache_dir=cache)
    (people / "cam0" / "02.png").write_bytes(encoded(target.images[30]))
    (people / "cam0" / "00.png").unlink()
    (people / "cam1" / "99.png").write_bytes(encoded(target.images[31]))
    after = embed_folder(embedder, people, cache_dir=cache)
    assert after.num_cached == 8 and len(after.names) == 10
    features = dict(zip(after.names, after.features_GD, strict=True))
    assert "cam0/00.png" not in features
    np.testing.assert_allclose(features["cam0/02.png"], of_store(embedder, target, [30])[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(features["cam1/99.png"], of_store(embedder, target, [31])[0], rtol=1e-5, atol=1e-5)
    old = dict(zip(before.names, before.features_GD, strict=True))
    np.testing.assert_array_equal(features["cam1/03.png"], old["cam1/03.png"])
    again = embed_folder(embedder, people, cache_dir=cache)
    assert again.num_cached == 10 and again.names == after.names
    np.testing.assert_array_equal(again.features_GD, after.features_GD)


def test_a_file_whose_content_changed_is_embedded_again(embedder, target, people, tmp_path):
    embed_folder(embedder, people, cache_dir=tmp_path / "cache")
    Image.fromarray(target.images[40]).save(people / "cam0" / "00.png")
    os.utime(people / "cam0" / "00.png", (1, 1))
    for known in (9, 10):
        found = embed_folder(embedder, people, cache_dir=tmp_path / "cache")
        assert found.num_cached == known
        np.testing.assert_allclose(found.features_GD[0], of_store(embedder, target, [40])[0], rtol=1e-5, atol=1e-5)


def test_a_touched_file_is_not_believed(embedder, people, tmp_path):
    embed_folder(embedder, people, cache_dir=tmp_path / "cache")
    os.utime(people / "cam0" / "00.png", (1, 1))
    assert embed_folder(embedder, people, cache_dir=tmp_path / "cache").num_cached == 9


def test_another_model_has_a_cache_of_its_own(embedder, exported, people, tmp_path):
    embed_folder(embedder, people, cache_dir=tmp_path / "cache")
    other = Embedder.load(exported, device="cpu")
    with torch.no_grad():
        next(other.model.parameters()).mul_(2)
    assert embed_folder(other, people, cache_dir=tmp_path / "cache").num_cached == 0
    assert embed_folder(embedder, people, cache_dir=tmp_path / "cache").num_cached == 10


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "other version"])
def test_a_damaged_cache_is_made_again(embedder, people, tmp_path, caplog, damage, monkeypatch):
    first = embed_folder(embedder, people, cache_dir=tmp_path / "cache")
    (file,) = (tmp_path / "cache" / "embeddings").glob("*.npz")
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "text":
        file.write_text("no archive")
    else:
        monkeypatch.setattr(gallery, "_FORMAT", 99)
    with caplog.at_level(logging.WARNING):
        again = embed_folder(embedder, people, cache_dir=tmp_path / "cache")
    assert "it is made again" in caplog.text and again.num_cached == 0
    np.testing.assert_array_equal(again.features_GD, first.features_GD)
    assert embed_folder(embedder, people, cache_dir=tmp_path / "cache").num_cached == 10


def test_nothing_in_the_cache_is_unpickled(embedder, people, tmp_path, caplog):
    embed_folder(embedder, people, cache_dir=tmp_path / "cache")
    (file,) = (tmp_path / "cache" / "embeddings").glob("*.npz")
    np.savez(file, features=np.array([print], dtype=object), listing=np.frombuffer(b"{}", np.uint8))
    with caplog.at_level(logging.WARNING):
        assert embed_folder(embedder, people, cache_dir=tmp_path / "cache").num_cached == 0
    assert "allow_pickle=False" in caplog.text


def test_an_interrupted_folder_goes_on_from_what_is_embedded(embedder, people, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH", 3)

    def interrupt(what, done, total):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_folder(embedder, people, cache_dir=tmp_path / "cache", progress=interrupt)
    assert embed_folder(embedder, people, cache_dir=tmp_path / "cache").num_cached == 6
    assert not list((tmp_path / "cache" / "embeddings").glob(".*.tmp"))


def test_a_long_folder_is_saved_now_and_then(embedder, people, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH", 3)
    monkeypatch.setattr(gallery, "SAVE_SECONDS", 0.0)
    seen = []

    def look(what, done, total):
        seen.append(len(list((tmp_path / "cache" / "embeddings").glob("*.npz"))))

    embed_folder(embedder, people, cache_dir=tmp_path / "cache", progress=look)
    assert seen == [0, 1, 1, 1]


def test_a_second_process_waits_for_the_first(embedder, people, tmp_path, caplog):
    embed_folder(embedder, people, cache_dir=tmp_path / "cache")
    (file,) = (tmp_path / "cache" / "embeddings").glob("*.lock")
    found = []
    with filelock.FileLock(file), caplog.at_level(logging.WARNING):
        second = threading.Thread(
            target=lambda: found.append(embed_folder(embedder, people, cache_dir=tmp_path / "cache"))
        )
        second.start()
        while "waiting for another process" not in caplog.text:
            second.join(0.01)
        assert not found
    second.join(30)
    assert found[0].num_cached == 10


def test_a_cache_that_cannot_be_written(embedder, people, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another --cache-dir"):
        embed_folder(embedder, people, cache_dir=tmp_path / "file")


def test_damaged_images_are_skipped_and_listed_or_refused(embedder, people, tmp_path):
    (people / "cam0" / "04.png").write_bytes(encoded(np.zeros((32, 16, 3), np.uint8))[:50])
    (people / "cam1" / "03.png").write_text("no image")
    found = embed_folder(embedder, people, cache_dir=tmp_path / "cache")
    assert len(found.names) == len(found.features_GD) == 8
    assert [name for name, _ in found.skipped] == ["cam0/04.png", "cam1/03.png"]
    assert all(reason.endswith(f"{name} cannot be decoded.") for name, reason in found.skipped)
    again = embed_folder(embedder, people, cache_dir=tmp_path / "cache")
    assert again.num_cached == 8 and again.skipped == found.skipped, "they are told every time"
    with pytest.raises(DataError, match=r"cam0/04.png cannot be decoded"):
        embed_folder(embedder, people, cache_dir=tmp_path / "cache", strict=True)


def test_a_folder_in_which_nothing_can_be_decoded(embedder, tmp_path):
    (tmp_path / "bad").mkdir()
    for name in ("a.jpg", "b.png"):
        (tmp_path / "bad" / name).write_text("no image")
    with pytest.raises(DataError, match=r"None of the 2 images of .*bad can be decoded; the first: .*a.jpg"):
        embed_folder(embedder, tmp_path / "bad", cache_dir=tmp_path / "cache")


# Search


@pytest.mark.parametrize("top", [1, 3, 50, 200])
def test_search_finds_what_a_plain_loop_finds(top):
    rng = np.random.default_rng(top)
    query, gallery_GD = (rng.normal(100, 1, (n, 16)).astype(np.float32) for n in (5, 50))
    rows, found = search(query, gallery_GD, top=top)
    for number, one in enumerate(query):
        exact = [float(np.linalg.norm(one.astype(np.float64) - other)) for other in gallery_GD]
        expected = sorted(range(50), key=lambda row: exact[row])[: min(top, 50)]
        assert rows[number].tolist() == expected
        np.testing.assert_allclose(found[number], [exact[row] for row in expected], rtol=1e-5)


def test_equal_distances_keep_the_order_of_the_gallery_and_the_same_image_is_at_0():
    gallery_GD = np.full((7, 4), 30.0, np.float32)
    rows, found = search(gallery_GD[:1], gallery_GD, top=4)
    assert rows.tolist() == [[0, 1, 2, 3]] and found.tolist() == [[0.0] * 4]


def test_what_cannot_be_searched():
    with pytest.raises(DataError, match="holds no image"):
        search(np.zeros((1, 3), np.float32), np.zeros((0, 3), np.float32), top=1)
    with pytest.raises(NotFiniteError):
        search(np.zeros((1, 3), np.float32), np.full((2, 3), np.nan, np.float32), top=1)


@pytest.mark.parametrize("seed", range(3))
def test_each_query_is_judged_as_all_of_them_are(seed):
    """With junk, distractors, queries without a positive, and ties."""
    rng = np.random.default_rng(seed)
    query_pids, gallery_pids = rng.integers(1, 9, 20), rng.integers(0, 8, 60)
    query_camids, gallery_camids = rng.integers(0, 3, 20), rng.integers(0, 3, 60)
    features = [rng.integers(0, 3, (n, 4)).astype(np.float32) for n in (20, 60)]
    (matrix,) = distances(*map(torch.from_numpy, features))
    report = rank(
        matrix,
        query_pids=query_pids,
        query_camids=query_camids,
        gallery_pids=gallery_pids,
        gallery_camids=gallery_camids,
    )
    judged = [
        judge(row, pid=pid, camid=camid, gallery_pids=gallery_pids, gallery_camids=gallery_camids)
        for row, pid, camid in zip(matrix, query_pids, query_camids, strict=True)
    ]
    precision = np.array([one.average_precision for one in judged])
    assert np.nanmean(precision) == pytest.approx(report.mAP) and np.isnan(precision).sum() == report.num_skipped
    for one, pid, camid in zip(judged, query_pids, query_camids, strict=True):
        same = gallery_pids[one.order_G] == pid
        np.testing.assert_array_equal(one.junk_G, same & (gallery_camids[one.order_G] == camid))
        np.testing.assert_array_equal(one.right_G, same & (gallery_camids[one.order_G] != camid))


def test_distractors_match_nobody():
    judged = judge(
        np.array([1.0, 2.0], np.float32), pid=0, camid=0, gallery_pids=np.array([0, 0]), gallery_camids=np.array([1, 0])
    )
    assert not judged.right_G.any() and not judged.junk_G.any() and np.isnan(judged.average_precision)
    assert np.isnan(average_precision(np.zeros(3, bool)))


# Feature maps and pictures


def test_the_highest_activation_is_what_max_pooling_passes_on(embedder, target, monkeypatch):
    rows = np.arange(7)
    peaks = activation.peaks(embedder, target.images, rows)
    np.testing.assert_allclose(peaks, of_store(embedder, target, rows), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(evaluate, "BATCH", 3)
    channels = peaks.argmax(axis=1)
    maps = activation.maps(embedder, target.images, rows, channels)
    assert maps.shape == (7, 4, 2)
    np.testing.assert_allclose(maps.max(axis=(1, 2)), peaks.max(axis=1), rtol=1e-5)
    assert activation.peaks(embedder, target.images, rows[:0]).shape == (0, peaks.shape[1])


def test_attention_is_bright_where_the_map_is_high():
    image = np.full((32, 16, 3), 90, np.uint8)
    high = np.zeros((4, 2), np.float32)
    high[0] = 5
    drawn = pictures.attention(image, high, height=64, width=32).astype(int)
    assert drawn.shape == (64, 32, 3) and drawn[:8].sum() > 2 * drawn[-8:].sum()
    flat = pictures.attention(image, np.zeros((4, 2), np.float32), height=64, width=32)
    assert np.ptp(flat, axis=(0, 1)).max() == 0, "a silent map marks nothing"


def test_marks_differ_by_style_and_symbol_not_by_colour_alone():
    """In grey, the borders of right, wrong and junk have different patterns, and so have the corners."""
    image = np.full((32, 16, 3), 128, np.uint8)
    marks = ("query", "right", "wrong", "junk")
    cells = [Cell(image_HWC=image, mark=mark, caption=("1. c1", "9.17")) for mark in marks]
    drawn = np.asarray(pictures.sheet([Row(title="person 0001", cells=cells)]).convert("L")).astype(int)
    width = 56 + 2 * 3 + 8
    tops = {}
    for number, mark in enumerate(marks):
        left = 8 + number * width
        border = drawn[8 + 15 :, left + 1]  # down the left edge, below the title
        inside = np.flatnonzero(border < 250)
        column = border[inside[0] : inside[-1] + 1]
        tops[mark] = (column < 200).mean()
    assert tops["query"] == tops["right"] == 1.0
    assert 0.55 < tops["wrong"] < 0.75 and 0.25 < tops["junk"] < 0.45
    corners = [drawn[100:136, 8 + n * width + 30 : 8 + n * width + 62] < 200 for n in range(4)]
    assert len({corner.sum() for corner in corners}) == 4


def test_files_are_small_and_thumbnails_are_images(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (1400, 800, 3), dtype=np.uint8))
    pictures.write(noise, tmp_path / "noise.jpg")
    assert (tmp_path / "noise.jpg").stat().st_size <= pictures.MAX_BYTES
    with Image.open(tmp_path / "noise.jpg") as image:
        assert image.format == "JPEG" and image.size == (800, 1400)
    head, _, content = pictures.thumbnail(np.zeros((400, 100, 3), np.uint8)).partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == (40, 160)
