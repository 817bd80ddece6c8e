"""Every command and every piece of code on the pages for users does what it says, or at least can be typed."""

import json
import re
import subprocess
import textwrap

import pytest
from docs_tests import pages, rules
from docs_tests.pages import ROOT, Command

import tune
from mmfa.commands import main as mmfa_main
from mmfa.errors import ConfigError, MmfaError
from studies import spec
from studies.resolve import resolve
from tune import rank, rebuild, replay

KINDS = {"shell", "python", "toml", "json", "text"}
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
NAME = {page: page.relative_to(ROOT).as_posix() for page in pages.PAGES}
WITH_PYTHON = [
    page
    for page in pages.PAGES
    if page.stem != "notebook" and any(block.kind == "python" for block in pages.blocks(page))
]
"""But the one that makes the recorded study."""
CHECK = ["python", "-m", "mmfa", "check"]
HEAD = 'question = "Does it matter?"\ntrials = 3\n'
SPACE = '[space."loss.lambda_aal"]\nlow = 0.1\nhigh = 10.0\n'


def of_kind(kind, *, among=pages.PAGES):
    """Return the blocks of a language as parameters of a test."""
    found = [block for page in among for block in pages.blocks(page) if block.kind == kind]
    return [pytest.param(block, id=block.where) for block in found]


@pytest.mark.parametrize("page", pages.PAGES, ids=NAME.get)
def test_every_command_can_be_typed(page, home):
    found = [command for block in pages.blocks(page) if block.kind == "shell" for command in pages.commands(block)]
    for command in [*found, *pages.inline(page)]:
        rules.check(command)


@pytest.mark.parametrize("page", pages.PAGES, ids=NAME.get)
def test_every_block_has_a_language_that_is_tested(page):
    assert {block.kind for block in pages.blocks(page)} <= KINDS


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("mmfa-study --study smoke --trails 3", "'--trails' is not an option; did you mean '--trials'"),
        ("mmfa-study --study smoke --set optim.epochs=3", "optim.epochs"),
        ("mmfa-study replay --study NAME", "not an option|required"),
        ("mmfa-rank --model first", "required"),
        ("python -m mmfa train --epochs 3", "--epochs"),
        ("python benchmarks/step.py --sure", "--sure"),
        ("python -m pytest tests/chaos -m weekly", "weekly"),
        ("make studies", "make has no target studies"),
        ("pip install -e '.[clusters]'", "clusters"),
        ("ray up --force tune/clusters/onprem.yaml", "--force"),
        ("ray submit tune/clusters/onprem.yaml tune/run_study.py -- --studdy smoke", "--studdy"),
        ("mlflow server --prot 5000", "--prot"),
        ("sbatch tune/clusters/slurm.sh --study lamdas", "lamdas"),
        ("kubectl apply -f tune/clusters/kubray.yaml", "tune/clusters/kubray.yaml is not there"),
        ("nosuchprogram --at all", "no rule for this program"),
    ],
)
def test_what_cannot_be_typed_is_found(home, words, match):
    (split,) = pages.split(words)
    with pytest.raises(AssertionError, match=match):
        rules.check(Command("somewhere", split))


@pytest.mark.parametrize("block", of_kind("toml"))
def test_every_study_can_be_planned(block):
    """A part of one is completed first."""
    whole = "question =" in block.text
    study = spec.parse(block.text if whole else _completed(block.text), name="mine", origin=block.where)
    for name in ["embedded"] if not study.pairs else ["embedded", "paper"]:
        resolve(study, profile_name=name, overrides={})


def _completed(text):
    """Return a study around the tables or keys that a page shows; a comparison gets no space."""
    compares = any(word in text for word in ("[arms", "[pairs", "judge", "controls ="))
    keys = "" if re.match(r"(trials|question) =", text) else HEAD
    if "[space" in text or (compares and "[arms" in text) or "[pairs" in text:
        return keys + text
    return keys + text + "\n" + ('[arms.mmfa]\ntitle = "MMFA"\n' if compares else SPACE)


@pytest.mark.parametrize("block", of_kind("json"))
def test_every_json_is_json(block):
    json.loads(block.text)


def test_a_folder_of_one_s_own_is_checked_as_typed(home):
    """docs/own-data.md: the command as it stands there, and what it prints but for numbers and the place."""
    found = pages.blocks(ROOT / "docs" / "own-data.md")
    (command,) = [c for b in found if b.kind == "shell" for c in pages.commands(b) if c.words[:4] == CHECK]
    (shown,) = [block.text for block in found if block.kind == "text"]
    told = rules.quiet(mmfa_main.main, [word.replace("~", str(home)) for word in command.words[3:]])
    assert stable(told.replace(str(home), "/home/me")) == stable(shown.replace("folder:~", "folder:/home/me"))


def stable(text):
    """Return lines without their numbers and the width of columns, which numbers decide."""
    return [re.sub(r" +", " ", NUMBER.sub("#", line)).strip() for line in text.strip().splitlines()]


@pytest.mark.slow
def test_the_notebook_prints_what_it_shows(studied):
    for (_, printed), (block, _) in zip(studied.shown, studied.shown[1:], strict=False):
        assert block.kind != "text" or stable(printed) == stable(block.text)
    frame = studied.names["frame"]
    assert frame.index.name == "training" and {"search/0000", "controls/target_bn-s0"} <= set(frame.index)
    assert set(frame["outcome"]) == {"complete"} and frame["loss.lambda_attr"].dtype == float
    assert frame["objective"].equals(frame["target_val/mAP"].rename("objective"))
    with pytest.raises(MmfaError, match=r"study must be one that is recorded there \(smoke-\w+\), but got 'lambdas'"):
        tune.results("lambdas", out=studied.folder / "mmfa-studies")


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=NAME.get)
def test_every_piece_of_python_runs(page, reader):
    """One page after the other in the folder of a recorded study."""
    names = {}
    for block in [block for block in pages.blocks(page) if block.kind == "python"]:
        exec(compile(block.text, block.where, "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/champion.md"])
def test_a_gallery_is_ranked_as_typed(page, reader, monkeypatch, tmp_path, embedded_cache):
    """The shell reads the block, up to the command; the command itself runs here, where nothing has to be imported."""
    block = next(b for b in pages.blocks(ROOT / page) if b.kind == "shell" and "mmfa-rank" in b.text)
    before, _, command = block.text.partition("mmfa-rank ")
    monkeypatch.setenv("MMFA_CACHE_DIR", str(embedded_cache))
    asked = subprocess.run(
        ["bash", "-euc", f"{before}printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    )
    monkeypatch.setenv("MMFA_CACHE_DIR", str(tmp_path / "embeddings"))
    told = rules.quiet(rank.main, asked.stdout.splitlines())
    assert re.search(r"^ *1 +\d", told, re.MULTILINE), told
    shown = (reader.folder / "ranked.html").read_text()
    assert "data:image/" in shown
    (reader.folder / "ranked.html").unlink()


@pytest.mark.slow
def test_a_study_is_replayed_and_reported_as_typed(reader):
    """`mmfa-study replay` and `report` as the pages have them, on the study that is there."""
    (reader.folder / "mine.py").write_text(next(b.text for b in criteria()))
    programs = {"replay": replay.main, "report": rebuild.main}
    typed = sorted(_of_recorded_studies(), key=len)
    for name, program in programs.items():
        words = next(words for words in reversed(typed) if words[0] == name)  # the one with most options
        rules.quiet(program, [reader.study if re.fullmatch(r"NAME|\w+-\w{12}", word) else word for word in words[1:]])


def _of_recorded_studies():
    for page in pages.PAGES:
        for block in pages.blocks(page):
            for command in pages.commands(block) if block.kind == "shell" else []:
                elsewhere = any(word.startswith(("http:", "postgresql:")) for word in command.words)
                if command.words[1:2] in (["replay"], ["report"]) and not elsewhere:
                    yield command.words[1:]


def criteria():
    """Return the criterion of one's own that docs/verdicts.md shows."""
    return [b for b in pages.blocks(ROOT / "docs" / "verdicts.md") if b.kind == "python" and "def spread" in b.text]


def test_blocks_and_commands_are_found(tmp_path):
    """Fenced, indented, at the end; transcripts, continued lines, pipes, redirections."""
    page = tmp_path / "page.md"
    page.write_text(
        textwrap.dedent("""\
            Text
                no block: it goes on

                A=1 first --x \\
                    "$(y | z)"   # said why

                (umask 077; second > /dev/null) && third

            ```text
            fourth
            ```

                $ fifth |
                    sixth
                output
            """)
    )
    found = [block._replace(page=ROOT / "README.md") for block in pages.blocks(page)]
    assert [(block.line, block.kind) for block in found] == [(4, "shell"), (10, "text"), (13, "shell")]
    words = [command.words for block in (found[0], found[2]) for command in pages.commands(block)]
    assert words == [["first", "--x", "$(y | z)"], ["umask", "077"], ["second"], ["third"], ["fifth"], ["sixth"]]


def test_an_empty_plan_is_refused():
    """What makes the test of TOML one: a part that names no field there is."""
    with pytest.raises(ConfigError, match="did you mean 'loss.lambda_aal'"):
        spec.parse(HEAD + SPACE.replace("aal", "all"), name="mine", origin="page")
