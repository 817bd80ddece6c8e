"""``mmfa-rank`` and ``python -m mmfa rank``: who in a folder of images looks like the one on a query image."""

from __future__ import annotations

import argparse
import html
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfa.commands.shared import Progress
from mmfa.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mmfa.data.records import Floats
    from mmfa.gallery import Gallery
    from mmfa.retrieval import Embedder

DESCRIPTION = """\
Rank a gallery: who in a folder of images looks like the one on a query image.

Takes a model that a training exported, embeds every image below --gallery (once: embeddings of unchanged files are
kept under --cache-dir) and prints the nearest ones of each query, by Euclidean distance. Queries are images, or folders
of them; a query that lies in the gallery is left out of its own result. Images that cannot be decoded are named and
skipped. A small distance is a likeness, and no proof of identity.

  python -m mmfa rank --model first/export --query someone.jpg --gallery ~/frames
  python -m mmfa rank --model first/export --query people/ --gallery ~/frames --html ranked.html --json ranked.json

exit codes: 0 fine; 2 bad input; 130 interrupted.
"""
PAGE_QUERIES = 100
"""Queries shown on a page, which holds all their thumbnails."""
_STYLE = """\
:root { color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif }
body { margin: 0 auto; max-width: 75rem; padding: 1rem }
h1 { font-size: 1.3rem; margin: 0 } h2 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere }
section { border-top: 1px solid #888; margin-top: 1.5rem; padding-top: 1rem }
ol { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(5.6rem, 1fr)); list-style: none;
  margin: 0; padding: 0 }
figure { margin: 0 } img { border-radius: 3px; height: 10rem; max-width: 100%; object-fit: contain;
  object-position: left }
.query img { outline: 3px solid currentColor; outline-offset: 2px }
figcaption { font-size: .85rem; overflow-wrap: anywhere; padding-top: .25rem }
p, footer { margin: .5rem 0; overflow-wrap: anywhere } footer { font-size: .85rem; margin-top: 2rem }"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ranked:
    """One query and what is nearest to it."""

    query: Path
    results: list[tuple[float, str]]
    """Euclidean distance, and file relative to the gallery; nearest first."""


def add_options(
    parser: argparse.ArgumentParser, *, models: str = "folder that a training exported its model to"
) -> None:
    """Add the options of this command; ``models`` says what --model takes."""
    parser.add_argument("--model", required=True, metavar="MODEL", help=models)
    parser.add_argument(
        "--query", required=True, nargs="+", type=Path, metavar="FILE", help="images, or folders of images"
    )
    parser.add_argument("--gallery", required=True, type=Path, metavar="DIR", help="folder of images, subfolders too")
    parser.add_argument("--top", type=int, default=10, metavar="K", help="results of each query (default: 10)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that holds the images itself")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as data")
    parser.add_argument(
        "--strict", action="store_true", help="refuse a folder with an image that cannot be decoded (default: skip it)"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="embeddings of galleries (default: $MMFA_CACHE_DIR, or mmfa in the user's cache folder)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code.

    Raises:
        MmfaError: no exported model, a query that is no image, an empty gallery, or a file that cannot be written.
    """
    if options.model.startswith("models:"):
        raise ConfigError(f"--model {options.model} is in MLflow's registry, which mmfa-rank knows; use that command.")
    check(options)
    return rank(options, model=Path(options.model).expanduser(), title=options.model)


def check(options: argparse.Namespace) -> None:
    """Refuse what can be known to fail before anything is read or fetched.

    Raises:
        MmfaError: --top, --query, --gallery, --html or --json that does not hold.
    """
    if options.top < 1:
        raise ConfigError(f"--top must be 1 or more, but got {options.top}.")
    options.gallery, options.query = options.gallery.expanduser(), [path.expanduser() for path in options.query]
    if not options.gallery.is_dir():
        kind = "a file" if options.gallery.exists() else "not there"
        raise DataError(f"--gallery must be a folder of images, but {options.gallery} is {kind}; check the path.")
    for path in options.query:
        if not path.exists():
            raise DataError(f"--query must be an image or a folder of images, but {path} is not there; check the path.")
    for option in ("html", "json"):
        path = getattr(options, option)
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"--{option} must name a file that can be written, but {path} cannot; name another.")
    if options.html is not None and options.html == options.json:
        raise ConfigError(f"--html and --json must be two files, but both are {options.html}.")


def rank(options: argparse.Namespace, *, model: Path, title: str) -> int:
    """Rank and write; return the exit code.

    Args:
        options: checked by :func:`check`.
        model: folder of an exported model.
        title: what the user calls it.

    Raises:
        MmfaError: see :func:`run`.
    """
    import numpy as np

    from mmfa.data import catalog
    from mmfa.gallery import embed_folder
    from mmfa.retrieval import Embedder

    embedder = Embedder.load(_export(model), device=options.device)
    progress, cache_dir = Progress(), (options.cache_dir or catalog.default_cache_dir()).expanduser()
    gallery = embed_folder(embedder, options.gallery, cache_dir=cache_dir, strict=options.strict, progress=progress)
    skipped = [(gallery.folder / name, reason) for name, reason in gallery.skipped]
    files, features = [], []
    for path in options.query:
        if path.is_dir():
            found = embed_folder(embedder, path, cache_dir=cache_dir, strict=options.strict, progress=progress)
            files += [path / name for name in found.names]
            features.append(found.features_GD)
            skipped += [(found.folder / name, reason) for name, reason in found.skipped]
        else:
            files.append(path)
            features.append(_embed_one(embedder, path))
    ranked = _search(files, np.concatenate(features), gallery, top=options.top)
    record = _record(options, title, embedder, gallery, ranked, skipped)
    if options.json:
        _write(options.json, json.dumps(record, indent=1, ensure_ascii=False) + "\n", option="--json")
    if options.html:
        _write(options.html, page(record, ranked, gallery), option="--html")
    sys.stdout.write(_table(ranked))
    if options.html:
        shown = f" with the first {PAGE_QUERIES} of {len(ranked):,} queries" if len(ranked) > PAGE_QUERIES else ""
        sys.stdout.write(f"page: {options.html}{shown}\n")
    _say_skipped(skipped)
    return 0


def _export(folder: Path) -> Path:
    """Return the folder of an exported model.

    Raises:
        ConfigError: it is none.
    """
    if (folder / "state.json").is_file():
        return folder
    if (folder / "export" / "state.json").is_file():
        raise ConfigError(f"--model must be the folder of an exported model; did you mean {folder / 'export'}?")
    kind = "holds no state.json" if folder.is_dir() else "is not a folder" if folder.exists() else "is not there"
    raise ConfigError(
        f"--model must be the folder of an exported model, but {folder} {kind}; `python -m mmfa train --out first` "
        "exports one to first/export."
    )


def _embed_one(embedder: Embedder, path: Path) -> Floats:
    from mmfa.retrieval import UnreadableError

    try:
        return embedder.embed([path])
    except UnreadableError as error:
        raise DataError(f"--query must be an image: {error}") from error


def _search(files: list[Path], query_QD: Floats, gallery: Gallery, *, top: int) -> list[Ranked]:
    """Return the nearest images of each query, itself left out."""
    from mmfa.retrieval import search

    # Two more than asked for: a query, and what it links to, may be in the gallery.
    rows_QK, distances_QK = search(query_QD, gallery.features_GD, top=top + 2)
    ranked = []
    for file, rows_K, distances_K in zip(files, rows_QK.tolist(), distances_QK.tolist(), strict=True):
        places = (file.resolve(), file.parent.resolve() / file.name)  # a link in the gallery is itself too
        own = [one.relative_to(gallery.folder).as_posix() for one in places if one.is_relative_to(gallery.folder)]
        found = [(distance, gallery.names[row]) for row, distance in zip(rows_K, distances_K, strict=True)]
        ranked.append(Ranked(query=file, results=[pair for pair in found if pair[1] not in own][:top]))
    return ranked


def _record(
    options: argparse.Namespace,
    title: str,
    embedder: Embedder,
    gallery: Gallery,
    ranked: list[Ranked],
    skipped: list[tuple[Path, str]],
) -> dict[str, Any]:
    return {
        "model": title,
        "model_fingerprint": embedder.fingerprint,
        "distance": "euclidean",
        "gallery": str(options.gallery),
        "num_gallery": len(gallery.names),
        "top": options.top,
        "queries": [
            {
                "file": str(one.query),
                "results": [
                    {"rank": rank, "distance": distance, "file": name}
                    for rank, (distance, name) in enumerate(one.results, start=1)
                ],
            }
            for one in ranked
        ],
        "skipped": [{"file": str(path), "reason": reason} for path, reason in skipped],
    }


def _table(ranked: list[Ranked]) -> str:
    lines = []
    for one in ranked:
        lines += [_shown(str(one.query)), f"{'rank':>6} {'distance':>10}  file"]
        lines += [f"{k:6} {distance:10.3f}  {_shown(name)}" for k, (distance, name) in enumerate(one.results, start=1)]
        lines += [] if one.results else ["  the gallery holds nothing but the query itself"]
    return "\n".join(lines) + "\n"


def _shown(name: str) -> str:
    """Return a file's name in one line of a terminal, whatever characters it has."""
    return name if name.isprintable() else ascii(name)


def _write(path: Path, text: str, *, option: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(
            f"{option} must name a file that can be written, but {path} cannot ({error.strerror}); name another."
        ) from error


def _say_skipped(skipped: list[tuple[Path, str]]) -> None:
    for _, reason in skipped:
        sys.stderr.write(f"skipped: {_shown(reason)}\n")
    if skipped:
        images = "image was" if len(skipped) == 1 else "images were"
        sys.stderr.write(f"{len(skipped):,} {images} skipped; --strict refuses them instead.\n")


def page(record: dict[str, Any], ranked: list[Ranked], gallery: Gallery) -> str:
    """Return a page of HTML that needs nothing but itself: each query, and its results with rank and distance.

    Args:
        record: what ``--json`` writes.
        ranked: all queries; the first :data:`PAGE_QUERIES` are shown.
        gallery: where their images are.
    """
    shown = ranked[:PAGE_QUERIES]
    more = f", the first {len(shown)} of them shown" if len(shown) < len(ranked) else ""
    facts = f"{len(ranked):,} quer{'y' if len(ranked) == 1 else 'ies'}{more}; {record['num_gallery']:,} gallery images"
    if record["skipped"]:
        facts += f"; {len(record['skipped']):,} that could not be decoded were skipped"
    sections = "\n".join(_section(one, gallery) for one in shown)
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Ranked gallery</title>
<style>
{_STYLE}
</style>
</head>
<body>
<h1>Ranked gallery</h1>
<p>{html.escape(facts)}.</p>
{sections}
<footer>
<p>Model {html.escape(record["model"])} ({record["model_fingerprint"]}), gallery {html.escape(record["gallery"])}.
Euclidean distance of un-normalised embeddings: smaller is more alike, and only distances by the same model can be
compared. A likeness is no proof of identity.</p>
</footer>
</body>
</html>
"""


def _section(one: Ranked, gallery: Gallery) -> str:
    figures = (
        _figure(gallery.folder / name, f"{rank}. {distance:.2f}", name, f"rank {rank}, distance {distance:.2f}")
        for rank, (distance, name) in enumerate(one.results, start=1)
    )
    items = "\n".join(f"<li>{figure}</li>" for figure in figures)
    query = _figure(one.query, "query", one.query.name, "query")
    title = html.escape(str(one.query))
    return f'<section>\n<h2>{title}</h2>\n<ol>\n<li class="query">{query}</li>\n{items}\n</ol>\n</section>'


def _figure(file: Path, label: str, name: str, alt: str) -> str:
    from mmfa.pictures import thumbnail
    from mmfa.retrieval import UnreadableError, pixels

    caption = f"<figcaption><b>{html.escape(label)}</b> {html.escape(name)}</figcaption>"
    described = html.escape(f"{alt}: {name}")
    try:
        address = thumbnail(pixels(file, name=name))
    except UnreadableError:  # gone since it was embedded
        return f"<figure><p>(the file is gone)</p>{caption}</figure>"
    return f'<figure><img src="{address}" alt="{described}" title="{html.escape(name)}">{caption}</figure>'
