"""What a query costs in a gallery of 20,000 images that are embedded already, as `mmfa-rank` and a program ask.

    python benchmarks/search_gallery.py

20,000 made-up embeddings of 2,048 dimensions, as ResNet-50's. The library call (`mmfa.retrieval.search`, top 10) stands
against the plain way, all distances and one `np.argsort`; taking a folder's embeddings from the cache
(`mmfa.gallery.embed_folder`: list 20,000 files, see that none has changed, know the model by its weights, read) against
`np.load` of the same numbers; both together, what `mmfa-rank` waits for between its start and its answer, against
half a second. The command's own start (imports, reading the model) is not in it: any command that loads torch has that.
"""

import argparse
import tempfile
from pathlib import Path

import lines
import numpy as np

from mmfa import gallery
from mmfa.config import profile
from mmfa.model import build
from mmfa.retrieval import Embedder, search

IMAGES, TOP = 20_000, 10
LIMIT = 0.5
"""Bar: what a query may take, with all that comes before it."""
PLAIN = 1.0
"""Bar: times as fast as the plain way."""


def filled(folder, *, images=IMAGES, device="cpu"):
    """Return a model, a folder of so many files and the cache folder that has all their embeddings."""
    config = profile("paper").with_overrides({"model.weights": "none"})
    embedder = Embedder(build(config, num_ids=2, num_attributes=1).eval(), config, device=device)
    people, cache_dir = folder / "people", folder / "cache"
    (cache_dir / "embeddings").mkdir(parents=True)
    people.mkdir()
    names = [f"{row:06d}.jpg" for row in range(images)]
    for name in names:
        (people / name).write_bytes(b"never decoded")
    found_GD = np.random.default_rng(0).random((images, embedder.model.num_features), dtype=np.float32)
    path = gallery.cache_file(people.resolve(), embedder, cache_dir=cache_dir)
    cache = gallery._Cache.open(path, folder=people.resolve())
    cache.keep(names)
    cache.add(names, found_GD)
    cache.save()
    return embedder, people, cache_dir


def cached(embedder, people, cache_dir):
    """Return the gallery, all of it from the cache, by a model that has just been loaded."""
    embedder.__dict__.pop("fingerprint", None)
    found = gallery.embed_folder(embedder, people, cache_dir=cache_dir)
    assert found.num_cached == len(found.names), "nothing is embedded here"
    return found


def plain(query_QD, gallery_GD):
    """Search as one would without a library."""
    distances_QG = np.stack([np.linalg.norm(gallery_GD - query_D, axis=1) for query_D in query_QD])
    return np.argsort(distances_QG, axis=1, kind="stable")[:, :TOP]


def measure(given, *, rounds):
    """Return the lines."""
    cache_dir = given[-1]
    found_GD = cached(*given).features_GD
    query_QD = found_GD[:1] + 0.01
    rows_QK, _ = search(query_QD, found_GD, top=TOP)
    np.testing.assert_array_equal(rows_QK, plain(query_QD, found_GD))
    (file,) = (cache_dir / "embeddings").glob("*.npz")

    def load():
        with np.load(file, allow_pickle=False) as stored:
            return stored["features"]

    def whole():
        search(query_QD, cached(*given).features_GD, top=TOP)

    more = {"images": len(found_GD), "dimensions": found_GD.shape[1]}
    searched = lines.pairs(lambda: search(query_QD, found_GD, top=TOP), lambda: plain(query_QD, found_GD), n=rounds)
    taken = lines.pairs(lambda: cached(*given), load, n=rounds)
    took = sorted(lines.seconds(whole) for _ in range(rounds))
    middle = float(np.median(took))
    name = "one query in 20,000 embeddings, against all distances and an argsort"
    return [
        lines.line(name, searched, at_least=PLAIN, **more),
        lines.line("20,000 embeddings from the cache, against np.load of them", taken, **more),
        lines.figure(
            "one query in a cached folder of 20,000 images, against half a second",
            ours=middle, peer=LIMIT, ratio=middle / LIMIT, at_most=1.0, n=rounds,
            spread=(took[0] / LIMIT, took[-1] / LIMIT), **more,
        ),
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(filled(Path(folder), device=options.device), rounds=options.rounds)
    lines.emit(found, "search_gallery", options.record)


if __name__ == "__main__":
    main()
