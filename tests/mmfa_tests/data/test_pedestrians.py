"""The rendered domains."""

import hashlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import PIL
import pytest
from PIL import Image

from mmfa.data import catalog
from mmfa.data.attributes import LOWER_COLOURS, MARKET, MARKET_FIELDS, UPPER_COLOURS, read_mat
from mmfa.data.market_layout import MARKET as LAYOUT
from mmfa.data.market_layout import read
from mmfa.data.pedestrians.camera import draw_camera, photograph
from mmfa.data.pedestrians.domains import DOMAINS, FAR, SEED, SOURCE, TARGET_GAPS, VERSION, Population, blend, generator
from mmfa.data.pedestrians.person import LOWER_RGB, UPPER_RGB, draw_person
from mmfa.data.pedestrians.render import _PICTURE, _camera, _person, attribute_codes, ensure_rendered, plan
from mmfa.data.records import no_progress
from mmfa.data.splits import held_out_pids
from mmfa.errors import DataError

TINY = Population(num_train=8, num_held_out=2, num_test=2)


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_processes_do_not_change_a_byte(tmp_path):
    stop = threading.Event()
    busy = threading.Thread(target=stop.wait)  # rendering must not mind a process with threads
    busy.start()
    try:
        folders = [
            ensure_rendered("embedded-target", cache_dir=tmp_path / str(n), population=TINY, num_processes=n)
            for n in (1, 3)
        ]
    finally:
        stop.set()
        busy.join()
    assert files_of(folders[0]) == files_of(folders[1])


def test_a_rendered_folder_is_a_market_1501(tmp_path):
    progress = []
    folder = ensure_rendered(
        "embedded-source",
        cache_dir=tmp_path,
        population=TINY,
        num_processes=1,
        progress=lambda *now: progress.append(now),
    )
    domain = read(LAYOUT, folder, name="embedded-source").domain
    assert domain.paths == tuple(sorted(shot.path for shot in plan("embedded-source", TINY)))
    assert progress[-1] == ("rendering embedded-source", len(domain.paths), len(domain.paths))
    for path in domain.paths:
        with Image.open(folder / path) as image:
            assert (image.size, image.mode, image.format) == ((64, 128), "RGB", "JPEG")
    codes = read_mat(folder / "market_attribute.mat", MARKET)
    assert codes.pids.tolist() == list(range(1, 11)) and (codes.codes >= 1).all()
    np.testing.assert_array_equal(codes.codes, attribute_codes("embedded-source", TINY).codes)
    assert ensure_rendered("embedded-source", cache_dir=tmp_path, population=TINY, progress=refuse) == folder
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", folder.name]


def refuse(*_):
    raise AssertionError("nothing is left to render")


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_the_published_population(name):
    shots = plan(name, Population())
    takes = {}
    for shot in shots:
        takes.setdefault((shot.pid, shot.camid), []).append(shot.path.split("/")[0])
    held_out = set(held_out_pids(np.arange(1, 701), num_ids=100).tolist())
    for (pid, _), folders in takes.items():
        if pid > 700:
            assert folders == ["query", "bounding_box_test"]
        else:
            assert folders == ["bounding_box_train"] * (2 if pid in held_out else 1)
    cameras = {}
    for pid, camid in takes:
        cameras.setdefault(pid, set()).add(camid)
    assert sorted(cameras) == list(range(1, 781))
    assert min(map(len, cameras.values())) >= 2 and set().union(*cameras.values()) == set(range(6))
    assert 1_800 < sum(folders == ["bounding_box_train"] for folders in takes.values()) < 2_300
    assert 240 < sum(shot.path.startswith("query") for shot in shots) < 320


def test_held_out_queries_all_have_a_positive(tmp_path, caplog):
    folder = ensure_rendered("embedded-null", cache_dir=tmp_path, population=TINY, num_processes=1)
    held = read(LAYOUT, folder, name="embedded-null").domain.with_held_out(2)
    assert len(held.rows("val_query")) == len(held.rows("val_gallery")) >= 4
    assert not caplog.records


def test_every_attribute_occurs_with_each_of_its_values():
    for name in DOMAINS:
        codes = attribute_codes(name, Population())
        for i, field in enumerate(codes.fields):
            values, counts = np.unique(codes.codes[:, i], return_counts=True)
            assert values.tolist() == ([1, 2, 3, 4] if field == "age" else [1, 2]), (name, field)
            assert counts.min() >= 10, (name, field)
    assert tuple(UPPER_RGB) == UPPER_COLOURS and tuple(LOWER_RGB) == LOWER_COLOURS
    ups = [i for i, field in enumerate(MARKET_FIELDS) if field[2:] in UPPER_COLOURS and field.startswith("up")]
    assert ((codes.codes[:, ups] == 2).sum(axis=1) == 1).all()


def test_domains_have_their_own_people_and_cameras():
    codes = {name: attribute_codes(name, Population()).codes for name in DOMAINS}
    assert not np.array_equal(codes["embedded-source"], codes["embedded-null"])
    scenes = {
        name: np.asarray(draw_camera(generator(domain.stream, 2, 0), domain.look).scene)
        for name, domain in DOMAINS.items()
    }
    assert not np.array_equal(scenes["embedded-source"], scenes["embedded-null"])


def test_the_gap_is_clutter_and_contrast_above_all():
    target = DOMAINS["embedded-target"].look
    assert (target.clutter, target.texture, target.noise, target.contrast) == (35, 20, 12, FAR.contrast)
    assert target.red == pytest.approx(1 + 0.3 * (FAR.red - 1))
    assert target.scale == pytest.approx(SOURCE.scale + 0.3 * (FAR.scale - SOURCE.scale))
    assert target.dark == pytest.approx(0.5 * FAR.dark)
    assert blend(SOURCE, FAR, dict.fromkeys(TARGET_GAPS, 0.0)) == SOURCE
    assert blend(SOURCE, FAR, dict.fromkeys(TARGET_GAPS, 1.0)) == FAR
    assert DOMAINS["embedded-null"].look == DOMAINS["embedded-source"].look == SOURCE


def visible_share(field, values, *, views=16):
    """Share of a 64 x 32 picture's pixels that change by more than 25 levels when only one attribute does."""
    look = SOURCE
    camera = draw_camera(generator(99, 2, 0), look)
    shares = []
    for key in range(views):
        person = draw_person(generator(99, 0, 7), look)
        base = {"hat": 1, "backpack": 1, "bag": 1, "handbag": 1, "hair": 1, "clothes": 2, "up": 1, "down": 1}
        pictures = []
        for value in values:
            person.codes.update({**base, field: value})
            picture = photograph(generator(99, 3, key), camera, person).resize((32, 64), Image.Resampling.BILINEAR)
            pictures.append(np.asarray(picture).astype(int))
        shares.append((np.abs(pictures[0] - pictures[1]).max(axis=2) > 25).mean())
    return float(np.mean(shares))


@pytest.mark.parametrize("field", ["hair", "up", "down", "clothes", "hat", "backpack", "bag", "handbag"])
def test_an_attribute_shows_at_the_size_of_the_network_input(field):
    assert visible_share(field, (1, 1)) == 0
    assert visible_share(field, (1, 2)) > 10 / (64 * 32)


KILLED = """
import os, signal, sys
from pathlib import Path
from mmfa.data.pedestrians.domains import Population
from mmfa.data.pedestrians.render import ensure_rendered

def progress(what, done, total):
    if done >= 20:
        os.kill(os.getpid(), signal.SIGKILL)

ensure_rendered("embedded-source", cache_dir=Path(sys.argv[1]), population=Population(num_train=60, num_held_out=2,
                num_test=2), num_processes=2, progress=progress)
"""


def test_a_kill_in_the_middle_leaves_nothing_taken_for_a_dataset(tmp_path):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    population = Population(num_train=60, num_held_out=2, num_test=2)
    assert [path.suffix for path in (tmp_path / "datasets").iterdir() if path.name != ".lock"] == [".tmp"]
    folder = ensure_rendered("embedded-source", cache_dir=tmp_path, population=population, num_processes=1)
    wanted = {shot.path for shot in plan("embedded-source", population)} | {"market_attribute.mat"}
    assert set(files_of(folder)) == wanted
    time.sleep(0.3)  # an orphaned worker would write into its folder still
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", folder.name]


def test_two_processes_at_once_render_once(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from mmfa.data.pedestrians.domains import Population\n"
        "from mmfa.data.pedestrians.render import ensure_rendered\n"
        "steps = []\n"
        "ensure_rendered('embedded-source', cache_dir=Path(sys.argv[1]), num_processes=1,\n"
        "    population=Population(num_train=60, num_held_out=2, num_test=2),\n"
        "    progress=lambda *now: steps.append(now))\n"
        "print(len(steps) > 0)"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sorted(process.communicate()[0].strip() for process in both) == ["False", "True"]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_picture_that_cannot_be_written_is_an_error(tmp_path, num_processes):
    def vanish(what, done, total):
        for folder in (tmp_path / "datasets").glob("*.tmp/bounding_box_train"):
            folder.rename(folder.with_name("moved"))

    with pytest.raises(DataError, match="embedded-source could not be rendered into .*FileNotFoundError"):
        ensure_rendered(
            "embedded-source",
            cache_dir=tmp_path,
            population=Population(num_train=120, num_held_out=2, num_test=2),
            num_processes=num_processes,
            progress=vanish,
        )
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == [".lock"]


def test_a_cache_that_is_no_folder_is_an_error(tmp_path):
    (tmp_path / "datasets").write_text("a file")
    with pytest.raises(DataError, match="embedded-source could not be rendered into .*--cache-dir"):
        ensure_rendered("embedded-source", cache_dir=tmp_path, population=TINY, num_processes=1)


def test_the_folder_is_named_after_what_decides_its_pictures(tmp_path):
    folder = ensure_rendered("embedded-source", cache_dir=tmp_path, population=TINY, num_processes=1)
    assert folder.name == f"embedded-source-v{VERSION}-seed{SEED}-pillow{PIL.__version__}-8-2-2"


PINNED_WITH = ("2.4.6", "13.0.0")
"""numpy and Pillow."""
PINNED = {3: "f8af1447649ae877a6e49883b7a49969dcdd743862ab45a1e2a3b7ce059919f1"}  # with AVX-512 and without it
"""SHA-256 of some pictures and labels by VERSION: whoever changes one raises VERSION, or old renderings are reused."""


@pytest.mark.skipif(
    (np.__version__, PIL.__version__) != PINNED_WITH,
    reason=f"the pictures are pinned with numpy {PINNED_WITH[0]} and Pillow {PINNED_WITH[1]} only",
)
def test_no_pixel_and_no_label_changes_without_another_version():
    digest = hashlib.sha256()
    for name in sorted(DOMAINS):
        for shot in plan(name, TINY)[::9]:
            digest.update(shot.path.encode())
            key = (_PICTURE, shot.pid, shot.camid, shot.take)
            picture = photograph(
                generator(DOMAINS[name].stream, *key), _camera(name, shot.camid), _person(name, shot.pid)
            )
            digest.update(np.asarray(picture).tobytes())
        digest.update(attribute_codes(name, TINY).codes.tobytes())
    assert digest.hexdigest() == PINNED[VERSION]


def test_the_catalogue_renders_on_first_use(tmp_path, monkeypatch):
    monkeypatch.setattr("mmfa.data.pedestrians.render.Population", lambda: TINY)
    dataset = catalog.load("embedded-target", data_root=None, cache_dir=tmp_path, progress=no_progress)
    assert dataset.domain.name == "embedded-target" and dataset.domain.attributes is not None
    assert dataset.domain.train_pids.tolist() == list(range(1, 9))
