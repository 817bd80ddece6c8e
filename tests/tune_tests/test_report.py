"""The report of whole studies whose results are made up: written at their end, and again from MLflow and the ledger."""

import collections
import html.parser
import json
import re
import shutil

import pandas
import pyarrow.parquet
import pytest
from mlflow.tracking import MlflowClient
from tune_tests.made_up import MadeUp, comparing, searching

from mmfa.errors import DataError, MmfaError
from tune import cli, rebuild
from tune.report import page, writing

VOID = {"meta", "link", "img", "path", "use", "rect", "image"}


class Page(html.parser.HTMLParser):
    """What is on a page: its ids, links, figures and text; tags that do not close are an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.figures, self.absent, self.tags = [], [], [], {}, {}, set()
        self.words, self.heading = [], ""
        self.feed(text)
        self.close()
        assert not self.open, self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[key] for key in ("href", "src") if key in found]
        self.links += re.findall(r"url\(([^)]*)\)", " ".join(value or "" for value in found.values()))
        if tag == "svg":
            assert found["role"] == "img"
            self.figures[self.heading] = found["aria-label"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open and self.open[-1] == "h3":
            self.heading = data
        if self.open[-2:] == ["p", "strong"]:
            self.strong = data.rstrip(":")
        elif self.open and self.open[-1] == "p" and data.strip() and getattr(self, "strong", ""):
            self.absent[self.strong] = data.strip().removeprefix(": ")
            self.strong = ""


def read(out):
    return Page((out / "report.html").read_text())


def rebuilt(out, study_id, *more):
    """Make the report again into the same folder; return the two files as they were before and are now."""
    before = {name: (out / name).read_bytes() for name in (writing.PAGE, writing.ROWS)}
    for name in before:
        (out / name).unlink()
    assert cli.main(["report", "--study-run", study_id, "--out", str(out), *map(str, more)]) == 0
    return before, {name: (out / name).read_bytes() for name in before}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A search with a verdict."""
    out = tmp_path_factory.mktemp("judged")
    study = MadeUp(out, searching(trials=12, more='scientific = ["loss.lambda_attr"]'))
    assert study.run() == 0
    return study


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison with a verdict between arms and published numbers of its pair."""
    study = MadeUp(tmp_path_factory.mktemp("compared"), comparing())
    assert study.run() == 0
    return study


def test_what_is_read_back_is_what_was_written(judged, compared):
    for study in (judged, compared):
        before, after = rebuilt(study.out, study.study_id)
        assert after == before, "byte for byte"
        for name, own in ((writing.PAGE, f".{writing.PAGE}"), (writing.ROWS, ".parquet")):
            assert (study.out / f"{study.study_id}{own}").read_bytes() == after[name]


def test_the_study_by_the_id_of_its_run(judged):
    client = MlflowClient(judged.session.request.places.tracking)
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    (run,) = [run for run in runs if "mmfa.lineage" not in run.data.tags]
    before, after = rebuilt(judged.out, run.info.run_id)
    assert after == before
    assert {"report.html", "study.parquet", "report.json"} <= {a.path for a in client.list_artifacts(run.info.run_id)}


EVERYWHERE = ["Every run", "CMC curves", "Terms of the loss", "Is the kernel alive?", "Gradient shares"]


def test_every_part_of_a_search(judged):
    found = read(judged.out)
    wanted = [
        "Differences that were judged", "The trials against the seed noise", "Each factor by itself", "Importance",
        "Pairs of loss weights", "All parameters at once", "Learning curves", "From which epoch on pruning is safe",
        *EVERYWHERE,
    ]  # fmt: skip
    assert sorted(found.figures) == sorted(wanted)
    for said in (
        "Asked:", "Found:", "How sure:", "Labels:", "Next:", "Seed noise:", "over n = 2 seeds", "Boundary:",
        "Which trial each criterion would have promoted", "Readings of the official test labels: ", "Vetoes: none",
        "mmfa-study --study mine.toml", "embedded-source aaaabbbbcccc", "0123456789ab", "s a training (n = 26, sd ",
        "over whatever the other factors were",
    ):  # fmt: skip
        assert said in found.text, said
    verdict = json.loads((judged.out / "verdict.json").read_text())
    one = verdict["judgements"][0]
    head = rf"{one['word']} : search-\d+ \([^()]*λ1 = [^()]+\) against the baseline, .{{4,5}} points of target mAP "
    assert re.search(head + r"\(no interval, n = 3 and 3\)", found.text)


def test_every_part_of_a_comparison(compared):
    found = read(compared.out)
    wanted = ["Differences that were judged", "Seed by seed", "Learning curves (identity loss)", *EVERYWHERE]
    assert sorted(found.figures) == sorted(wanted)
    assert "×: published for the same pair." in found.text and "SPGAN (published)" in found.text
    assert "mmfa/0000" in found.text and "L_MDAL sat on its plateau" in found.text
    for name in ("Search", "Selection regret", "From which epoch on pruning is safe"):
        assert found.absent[name], name


def test_figures_tell_their_numbers_without_being_seen(judged):
    text = (judged.out / "report.html").read_text()
    found = read(judged.out)
    assert all(len(alt) > 40 and re.search(r"\d", alt) for alt in found.figures.values())
    assert "search/00" in found.figures["The trials against the seed noise"]
    shown = r'<figcaption>(.*?)</figcaption>\s*</figure>\s*<details class="numbers">.*?</details>'
    figures = re.findall(shown, text, re.S)
    assert len(figures) == len(found.figures), "each has a caption and its data in a table"
    assert sum("n = " in caption for caption in figures) >= 8


def test_a_page_stands_alone_and_lets_nothing_through(judged, compared):
    for study in (judged, compared):
        text, found = (study.out / "report.html").read_text(), read(study.out)
        assert not {"script", "iframe", "object", "base"} & found.tags
        assert max(collections.Counter(found.ids).values()) == 1
        for link in found.links:
            assert link.startswith(("#", "data:")), link
            assert not link.startswith("#") or link[1:] in found.ids
        assert str(study.out) not in text, "no path of the machine that made it"
        assert len(text) < 1_500_000
    assert "<the paper's>" not in (judged.out / "report.html").read_text()
    assert "Do other λ's beat <the paper's> & \"mine\"?" in read(judged.out).text
    assert "MMFA <b>" in read(compared.out).text and "b" not in read(compared.out).tags


def test_a_search_that_was_not_confirmed(tmp_path):
    study = MadeUp(tmp_path, searching(trials=6, quick=True))
    assert study.run() == 0
    found = read(tmp_path)
    assert "Nothing is confirmed (--quick)" in found.text
    assert found.absent["Differences that were judged"] == "--quick leaves fresh seeds out, so nothing is judged."
    assert found.absent["Importance"].startswith("n = 6 trials with a result are too few")
    assert found.absent["Seed noise"].startswith("The baseline ran with one seed")
    assert {"Every run", "CMC curves", "Learning curves"} <= set(found.figures)
    assert "Published for MMFA: Tables 1 and 2 of the paper" in found.text and "45.3" in found.text
    assert "These are of other data, and not to be compared with numbers of this pair." in found.text
    before, after = rebuilt(tmp_path, study.study_id)
    assert after == before


def test_trials_that_ended_early(tmp_path):
    ends = {"search/0002": "pruned", "search/0003": "diverged", "controls/target_bn-s0": "diverged"}
    study = MadeUp(tmp_path, searching(trials=5), ends=ends)
    assert study.run() == 0
    found = read(tmp_path)
    assert "search/0002, pruned: made up: pruned <here>." in found.text
    assert "search/0003, diverged: made up: diverged <here>." in found.text
    assert re.search(r"19 trainings .*: 16 complete, 2 diverged, 1 pruned", found.text)
    before, after = rebuilt(tmp_path, study.study_id)
    assert after == before
    rows = pandas.read_parquet(tmp_path / "study.parquet")
    ended = rows[rows["last"]].set_index("lineage")
    assert ended.loc["search/0002", ["state", "epoch"]].tolist() == ["pruned", 2]
    assert ended.loc["search/0003", "train/loss_total"] == float("inf"), "as it was, not as MLflow keeps it"
    assert pandas.isna(ended.loc["search/0002", "objective"]) and not pandas.isna(ended.loc["search/0001", "objective"])


def test_one_trial(tmp_path):
    study = MadeUp(tmp_path, searching(trials=1, seeds=1))
    assert study.run() == 0
    found = read(tmp_path)
    assert found.absent["All parameters at once"].startswith("n = 1 trial with a result is no pattern")
    assert found.absent["Differences that were judged"] == "No setting went on to fresh seeds, so nothing is judged."
    before, after = rebuilt(tmp_path, study.study_id)
    assert after == before


def test_a_target_without_labels(tmp_path):
    study = MadeUp(tmp_path, searching(trials=4, seeds=3, labelled=False))
    assert study.run() == 0
    found = read(tmp_path)
    assert found.absent["CMC curves"] == "The target has no labels, so no rank of a match is known."
    assert found.absent["Selection regret"].startswith("The target has no labels")
    assert found.absent["Every run"].startswith("The target has no labels")
    assert "label_free/score" in found.figures["The trials against the seed noise"]
    before, after = rebuilt(tmp_path, study.study_id)
    assert after == before


def test_a_comparison_that_judges_nothing(tmp_path):
    study = MadeUp(tmp_path, comparing(judge="", held_out=100))
    assert study.run() == 0
    found = read(tmp_path)
    assert found.absent["Differences that were judged"].startswith("The study file names no pair of arms")
    assert "Learning curves" in found.figures and "MMFA <b> − literal" in found.figures["Seed by seed"]


def test_a_study_that_is_not_finished(tmp_path, capsys):
    study = MadeUp(tmp_path, searching(trials=6), ends={"search/0002": "running"}, until=8)
    assert study.run() is None
    assert cli.main(["report", "--study-run", study.study_id, "--out", str(tmp_path)]) == 0
    assert "The study is not finished, and the page says so." in capsys.readouterr().out
    found = read(tmp_path)
    assert "This study is not finished: 7 trainings are over, " in found.text
    assert found.absent["Verdict"] == "The study is not finished, so nothing is judged yet."
    assert "Do other λ's beat" in found.text, "the question is on the run"
    rows = pandas.read_parquet(tmp_path / "study.parquet")
    assert {"complete", "running", "waiting"} <= set(rows["state"])


def test_the_rows(judged):
    rows = pandas.read_parquet(judged.out / "study.parquet")
    assert rows["lineage"].nunique() == 26 == rows["last"].sum() and len(rows) == 4 * 26
    assert str(rows["ended_at"].dtype).startswith("datetime64[ms, UTC") and rows["last"].dtype == bool
    assert rows["seed"].dtype == "int64" and rows["loss.lambda_attr"].dtype == "float64"
    last = rows[rows["last"]]
    assert last["target/mAP"].notna().all() and rows.loc[~rows["last"], "target/mAP"].isna().all()
    assert rows["train/loss_identity"].notna().all() and (last["seconds"] == 1.5 * 4 + 2.5 + 0.75).all()
    record = json.loads((judged.out / f"{judged.study_id}.json").read_text())
    values = {row["name"]: row["value"] for row in record["rows"]}
    assert dict(zip(last["lineage"], last["objective"], strict=True)) == values
    schema = pyarrow.parquet.read_schema(judged.out / "study.parquet")
    assert schema.field("target/mAP").metadata[b"unit"] == b"fraction"
    assert all(field.metadata[b"meaning"] for field in schema if "/" not in field.name)
    assert schema.metadata[b"mmfa.study"].decode() == judged.study_id


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000 1f15c4890000000d49444154789c6360606060000000050001a5f6"
    "45400000000049454e44ae426082".replace(" ", "")
)
ENTRY = {"file": "one.png", "title": "A <gallery>", "alt": "ten images", "caption": "n = 1"}


def test_pictures_of_the_method(judged, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "one.png").write_bytes(PNG)
    (folder / "pictures.json").write_text(json.dumps([ENTRY]))
    told = "They could not be drawn when the study ended (KeyError)"
    assert told in read(judged.out).text
    before, after = rebuilt(judged.out, judged.study_id, "--pictures", folder)
    found = read(judged.out)
    assert told not in found.text and "A <gallery>" in found.text
    assert any(link.startswith("data:image/png;base64,iVBOR") for link in found.links)
    shutil.copytree(folder, writing.pictures_of(judged.out, judged.study_id))
    assert rebuilt(judged.out, judged.study_id) == (after, before), "what lies there is of an earlier state"
    shutil.rmtree(writing.pictures_of(judged.out, judged.study_id))


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        (None, "pictures.json must be a JSON list of pictures, but it cannot be read"),
        ("{", "pictures.json must be a JSON list of pictures, but it cannot be read"),
        ('[{"file": "one.png"}]', "must be a list of objects with texts for file, title, alt, caption"),
        (json.dumps([{**ENTRY, "file": "../one.png"}]), "a picture is a PNG or JPEG file of that folder"),
        (json.dumps([{**ENTRY, "file": "one.svg"}]), "a picture is a PNG or JPEG file of that folder"),
        (json.dumps([{**ENTRY, "file": "gone.png"}]), "lists gone.png, which cannot be read (No such file"),
    ],
)
def test_pictures_that_cannot_be_embedded(tmp_path, index, sentence):
    from tune.report import embedded

    if index is not None:
        (tmp_path / "pictures.json").write_text(index)
    with pytest.raises(DataError, match=re.escape(sentence)):
        embedded.read(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--study-run", "mien-012345678901"], "the ledger has no study 'mien-012345678901'; did you mean '{study}'?"),
        (["--study-run", "mine"], "the ledger has no study 'mine'; did you mean '{study}'?"),
        (["--study-run", "lambdas-012345678901"], "the ledger has no study 'lambdas-012345678901'; it has '{study}'."),
        (["--study-run", "f" * 32], "has no run ffffffff"),
        (["--study-run", "{study}", "--out", "{out}/gone"], "ledger.db is not there; give the study's --out"),
        (["--study-run", "{study}", "--tracking-uri", "sqlite:///{out}/gone.db"], "gone.db is not there"),
        (["--study-run", "{study}", "--ledger", "sqlite:///{out}/mlflow.db"], "must be two databases"),
        (["--study-run", "{study}", "--tracking-uri", "http://127.0.0.1:1"], "MLflow at http://127.0.0.1:1 says: "),
        (["--study-run", "{study}", "--pictures", "{out}/gone"], "--pictures must be a folder"),
        (["--study-run", "{study}", "--ledgr", "x"], "'--ledgr' is not an option; did you mean '--ledger'?"),
        ([], "the following arguments are required: --study-run"),
    ],
)
def test_bad_input_gets_one_sentence(judged, arguments, sentence):
    texts = [text.format(study=judged.study_id, out=judged.out) for text in arguments]
    given = texts if "--out" in texts else ["--out", str(judged.out), *texts]
    with pytest.raises(MmfaError) as raised:
        rebuild.main(given)
    said = str(raised.value)
    assert sentence.format(study=judged.study_id) in said and "\n" not in said


def test_artifacts_that_are_missing_are_said(judged, tmp_path):
    """A study run of an older version, or one from which somebody deleted files."""
    out = tmp_path / "out"
    shutil.copytree(judged.out, out, ignore=shutil.ignore_patterns("storage", "*.html", "*.parquet"))
    client = MlflowClient(judged.session.request.places.tracking)
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    (run,) = [run for run in runs if "mmfa.lineage" not in run.data.tags]
    folder = judged.out / run.info.artifact_uri.removeprefix(f"file://{judged.out}/")
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    try:
        for name in ("report.json", "outcome.json", "verdict.json", "test_label_readings.json", "study.json"):
            (folder / name).unlink()
        (folder / "outcome.json").write_text("{ cut sho")
        assert cli.main(["report", "--study-run", judged.study_id, "--out", str(out)]) == 0
    finally:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    found = read(out)
    assert found.absent["Verdict"].startswith("verdict.json is missing or damaged")
    assert found.absent["Selection regret"].endswith("is not on record.")
    assert found.absent["Readings of the official test labels"].endswith("is not on record.")
    assert "command not on record" in found.text and "the study's run lacks" in found.text.lower()
    assert {"Each factor by itself", "CMC curves", "Learning curves"} <= set(found.figures)


def test_a_report_that_cannot_be_drawn_does_not_take_the_study_with_it(tmp_path, capsys):
    study = MadeUp(tmp_path, comparing(judge=""))
    (tmp_path / "report.html").mkdir()
    assert study.run() == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The report could not be drawn (IsADirectoryError: " in said and f"--study-run {study.study_id}" in said
    assert (tmp_path / f"{study.study_id}.json").exists() and (tmp_path / "report.html").is_dir()


def test_pictures_that_are_none_do_not_take_the_page_with_them(tmp_path):
    study = MadeUp(tmp_path, comparing(judge=""))
    writing.pictures_of(tmp_path, study.study_id).mkdir()  # without an index
    assert study.run() == 0
    assert read(tmp_path).absent["Pictures of the method"].startswith("There are none: no two trainings with a result")
    assert not writing.pictures_of(tmp_path, study.study_id).exists()


def test_long_tables_are_cut_and_say_so(judged, monkeypatch):
    from tune.report import from_session

    session = judged.session
    facts = from_session.gather(session, session.outcome(), None, regret=[], promoted=[])
    monkeypatch.setattr(page, "MAX_ROWS", 5)
    assert "The first 5 of 26 rows; study.parquet has them all." in page.render(facts)


def test_an_oracle_says_so_above_everything(tmp_path):
    oracle = '[objective]\nmetric = "target/mAP"\nselection = "oracle"'
    study = MadeUp(tmp_path, searching(trials=3, more=oracle))
    assert study.run() == 0
    head = (tmp_path / "report.html").read_text().partition("<nav")[0]
    assert '<p class="state">THE OFFICIAL TEST LABELS CHOSE (selection.labels = oracle)' in head


def test_a_dead_term_is_told_from_one_without_weight(tmp_path):
    """The made-up kernel of `literal` sees nothing, as that of eq. 5 taken literally: its gradient is exactly 0."""
    plan = comparing(judge="")
    study = MadeUp(tmp_path, plan)
    assert study.run() == 0
    shares = read(tmp_path).figures["Gradient shares"]
    assert re.search(r"literal: attribute \(λ1\) 0.1, MDAL \(λ3\) 0 \(dead\)", shares), shares
    assert "Dead after the last epoch: literal, MDAL (λ3), in 3 of 3 runs." in read(tmp_path).text


def test_the_command_asks_for_what_there_is(tmp_path):
    """The study file has three seeds; that an earlier call asked for four is not in the last one."""
    study = MadeUp(tmp_path, comparing(judge="", trials=4), command="mmfa-study --study mine.toml --out x")
    assert study.run() == 0
    assert "mmfa-study --study mine.toml --out x --trials 4" in read(tmp_path).text
    assert "--out x --trials 4" in (tmp_path / f"{study.study_id}.txt").read_text()
