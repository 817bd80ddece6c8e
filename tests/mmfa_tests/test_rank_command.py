"""``mmfa-rank`` with an exported model: what it prints and writes, and one sentence for what does not hold."""

import base64
import html.parser
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from mmfa.commands import rank
from mmfa.training import Training
from tune.rank import main


@pytest.fixture(scope="module")
def exported(source, target, tiny, tmp_path_factory):
    training = Training(tiny, source=source, target=target, device="cpu")
    return training.export(tmp_path_factory.mktemp("train") / "export")


@pytest.fixture
def world(target, tmp_path):
    """A gallery of twelve images, three of which are queries too, and a query elsewhere."""
    root = tmp_path
    for row in range(12):
        file = root / "gallery" / f"cam {row % 3}" / f"{row:02d} <b>&é.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(target.images[row]).save(file)
    Image.fromarray(target.images[5]).save(root / "query.png")
    return root


@pytest.fixture
def call(exported, world):
    def run(*words, model=exported, query=None, gallery=None):
        given = ["--model", model, "--query", query or world / "query.png", "--gallery", gallery or world / "gallery"]
        arguments = [*given, "--cache-dir", world / "cache", "--device", "cpu", *words]
        return main([str(word) for word in arguments])

    return run


@pytest.fixture
def refused(call, capsys):
    def run(*words, **places):
        assert call(*words, **places) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("mmfa-rank: ")
        return error

    return run


class Page(html.parser.HTMLParser):
    """What a page shows and asks for."""

    def __init__(self, text):
        super().__init__()
        self.images, self.addresses, self.text, self.metas = [], [], "", {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.images += [given] if tag == "img" else []
        self.addresses += [given[name] for name in ("src", "href") if name in given]
        self.metas |= {given["name"]: given["content"]} if tag == "meta" and "name" in given else {}
        assert tag not in ("script", "link", "iframe", "b") or not given, tag

    def handle_data(self, data):
        self.text += data


def test_the_nearest_come_first(call, world, capsys):
    assert call("--top", "4", "--json", world / "out.json") == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == str(world / "query.png") and lines[1] == "  rank   distance  file"
    assert lines[2] == "     1      0.000  cam 2/05 <b>&é.png" and len(lines) == 6
    assert "embedding gallery: 12 of 12 (100%)" in shown.err
    record = json.loads((world / "out.json").read_text())
    (query,) = record["queries"]
    assert query["file"] == str(world / "query.png") and record["num_gallery"] == 12 and record["skipped"] == []
    found = query["results"]
    assert [one["rank"] for one in found] == [1, 2, 3, 4]
    assert [one["distance"] for one in found] == sorted(one["distance"] for one in found)
    assert lines[3].endswith(found[1]["file"]) and f"{found[1]['distance']:.3f}" in lines[3]
    assert call() == 0
    assert "embedding" not in capsys.readouterr().err, "the second call has nothing to embed"


def test_a_query_of_the_gallery_is_left_out_of_its_result(call, world, capsys):
    own = world / "gallery" / "cam 2" / "05 <b>&é.png"
    assert call("--top", "50", query=own) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 11 and not any(line.endswith("cam 2/05 <b>&é.png") for line in lines[2:])


def test_a_gallery_of_the_query_alone(call, world, capsys):
    lonely = world / "lonely"
    lonely.mkdir()
    (world / "query.png").rename(lonely / "query.png")
    assert call("--html", world / "out.html", query=lonely / "query.png", gallery=lonely) == 0
    assert "the gallery holds nothing but the query itself" in capsys.readouterr().out


def test_several_queries_and_folders_of_them(call, world, exported, capsys):
    arguments = ["--model", exported, "--gallery", world / "gallery", "--cache-dir", world / "cache", "--top", "2"]
    queries = ["--query", world / "query.png", world / "gallery" / "cam 0"]
    assert main([str(word) for word in [*arguments, *queries, "--json", world / "out.json"]]) == 0
    record = json.loads((world / "out.json").read_text())
    assert [query["file"] for query in record["queries"]] == [
        str(world / "query.png"),
        *(str(world / "gallery" / "cam 0" / f"{row:02d} <b>&é.png") for row in (0, 3, 6, 9)),
    ]
    for query in record["queries"][1:]:
        assert len(query["results"]) == 2
        assert all(not query["file"].endswith(one["file"]) for one in query["results"]), "not itself"


def test_the_page_stands_on_its_own(call, world):
    (world / "gallery" / "damaged.jpg").write_text("no image")
    assert call("--html", world / "out.html", "--top", "10") == 0
    text = (world / "out.html").read_text()
    page = Page(text)
    assert page.metas["viewport"] == "width=device-width, initial-scale=1"
    assert len(page.images) == 11 and all(image["alt"] for image in page.images)
    assert page.images[0]["alt"] == "query: query.png"
    assert page.images[1]["alt"] == "rank 1, distance 0.00: cam 2/05 <b>&é.png"
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert base64.b64decode(page.addresses[0].partition(",")[2]).startswith(b"\xff\xd8")
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', ""), "nothing is fetched"
    assert "1 query; 12 gallery images; 1 that could not be decoded were skipped." in page.text
    assert "1. 0.00" in page.text and "A likeness is no proof of identity." in page.text


def test_a_page_of_many_queries_says_what_it_leaves_out(call, world, capsys, monkeypatch):
    monkeypatch.setattr(rank, "PAGE_QUERIES", 3)
    assert call("--html", world / "out.html", "--top", "1", query=world / "gallery") == 0
    assert f"page: {world / 'out.html'} with the first 3 of 12 queries" in capsys.readouterr().out
    page = Page((world / "out.html").read_text())
    assert len(page.images) == 6 and "12 queries, the first 3 of them shown" in page.text


def test_damaged_images_are_named_and_counted_or_refused(call, refused, world, capsys):
    (world / "gallery" / "one.jpg").write_text("no image")
    (world / "gallery" / "two.png").write_bytes(b"")
    assert call("--json", world / "out.json") == 0
    told = capsys.readouterr().err.splitlines()[-3:]
    assert told[0].startswith("skipped: Every image must be an intact JPEG or PNG or BMP, but ")
    assert told[0].endswith("one.jpg cannot be decoded.") and told[2].startswith("2 images were skipped")
    assert [one["file"] for one in json.loads((world / "out.json").read_text())["skipped"]] == [
        str(world / "gallery" / "one.jpg"),
        str(world / "gallery" / "two.png"),
    ]
    assert refused("--strict").endswith("one.jpg cannot be decoded.")


def test_bad_input_is_refused_in_a_sentence(refused, world, exported):
    assert refused("--top", "0") == "mmfa-rank: --top must be 1 or more, but got 0."
    assert "--top" in refused("--top", "many")
    assert refused(query=world / "gone.png").endswith("gone.png is not there; check the path.")
    (world / "text.jpg").write_text("no image")
    assert refused(query=world / "text.jpg").startswith("mmfa-rank: --query must be an image: Every image must be")
    assert refused(gallery=world / "gone").endswith(f"{world / 'gone'} is not there; check the path.")
    assert refused(gallery=world / "query.png").endswith("query.png is a file; check the path.")
    (world / "empty").mkdir()
    assert "empty has none; images end in .jpg" in refused(gallery=world / "empty")
    assert "is not there; `python -m mmfa train --out first` exports one" in refused(model=world / "gone")
    assert "holds no state.json" in refused(model=world / "empty")
    assert refused(model=exported.parent).endswith(f"did you mean {exported}?")
    assert "did you mean '--html'?" in refused("--htlm", "x")
    assert "device must be" in refused("--device", "tpu")


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_embedded(refused, world, option, capsys):
    for path in (world / "nowhere" / "out", world / "gallery"):
        said = refused(option, path)
        assert said == f"mmfa-rank: {option} must name a file that can be written, but {path} cannot; name another."
    assert not (world / "cache").exists()


def test_one_file_cannot_hold_both(refused, world):
    assert "--html and --json must be two files" in refused("--html", world / "out", "--json", world / "out")


def test_a_damaged_model_is_refused(refused, world, exported):
    broken = world / "export"
    broken.mkdir()
    for file in exported.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "use another checkpoint." in refused(model=broken)


def test_without_mlflow_a_registered_model_is_pointed_to_the_command_that_knows_it(exported, world):
    parser = rank_parser()
    options = parser.parse_args(
        ["--model", "models:/people@champion", "--query", str(world / "query.png"), "--gallery", str(world / "gallery")]
    )
    with pytest.raises(Exception, match="which mmfa-rank knows"):
        rank.run(options)


def rank_parser():
    from mmfa.commands.shared import Parser

    parser = Parser(prog="python -m mmfa rank")
    rank.add_options(parser)
    return parser


def test_into_a_pipe_that_closes(exported, world):
    """As `mmfa-rank ... | head -1` is called."""
    command = "import sys; from tune.rank import main; sys.exit(main())"
    queries = [str(world / "gallery")]
    arguments = ["--model", str(exported), "--gallery", str(world / "gallery"), "--query", *queries]
    process = subprocess.Popen(
        [sys.executable, "-c", command, *arguments, "--cache-dir", str(world / "cache")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(60) == 0 and "Traceback" not in error


def test_help_names_what_it_takes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "models:/NAME@ALIAS" in text and "python -m mmfa" not in text
    assert text.startswith("usage: mmfa-rank")
