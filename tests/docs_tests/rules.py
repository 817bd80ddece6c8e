"""One rule for every program that the pages name: what must hold of a command before a reader types it."""

import contextlib
import io
import itertools
import re
import shlex
import subprocess
import tomllib
import warnings

import click
from docs_tests.pages import ROOT

from mmfa.commands import main as mmfa_main
from mmfa.errors import ConfigError
from tune import cli, rank, rebuild, replay

FOREIGN = {
    "$EDITOR", ".", "aws", "base64", "cat", "cd", "createdb", "curl", "docker", "done", "export", "for", "git", "head",
    "kubectl", "ls", "printf", "ssh", "ssh-copy-id", "ssh-keygen", "tail", "umask",
}  # fmt: skip
"""Others' programs and the shell's own words: of these only the paths of this repository are checked."""
TREES = ("benchmarks/", "docs/", "mmfa/", "studies/", "tests/", "tune/")
"""What a path of this repository begins with."""


def check(command):
    """Check a command by the rule of its program.

    Raises:
        AssertionError: it cannot work, or there is no rule for it.
    """
    told = f"{command.where}: {shlex.join(command.words)}"
    program, *words = command.words
    program = program.removeprefix(".venv/bin/")
    assert program in RULES or program in FOREIGN, f"{told}: no rule for this program; write one in rules.py"
    for word in command.words:
        assert not word.startswith(TREES) or (ROOT / word.partition("::")[0]).exists(), f"{told}: {word} is not there"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            RULES.get(program, lambda words: None)(words)
    except (ConfigError, click.ClickException) as error:
        # A sentence may name a command without all that it needs.
        missing = isinstance(error, click.MissingParameter) or "arguments are required" in str(error)
        if not (command.inline and missing):
            raise AssertionError(f"{told}: {error}") from error
    except SystemExit as end:  # --help
        assert not end.code, told


def study(words):
    """``mmfa-study``: a study is planned by the command itself, with ``--dry-run``; all else is parsed."""
    if words[:1] == ["replay"]:
        replay.parser().parse_args(words[1:])
    elif words[:1] == ["report"]:
        rebuild.parser().parse_args(words[1:])
    elif words == ["--list"]:
        assert "lambdas" in quiet(cli.main, words)
    elif "--study" not in words:
        cli.parser().parse_args(words)  # leaves where it is --help
        raise AssertionError(f"{words} asks for nothing")
    else:
        quiet(cli.main, [*words, "--dry-run"])


def quiet(main, words):
    """Run a command in this process.

    Raises:
        ConfigError: what it complained of.
    """
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = main(words)
    if code:
        raise ConfigError(told.getvalue())
    return told.getvalue()


def python(words):
    """``python``: a module or a script of ours, a test, or a line of code, which is run."""
    if words[:2] == ["-m", "mmfa"]:
        _, unknown = mmfa_main.parser().parse_known_args(words[2:])
        assert not unknown, unknown
    elif words[:2] == ["-m", "mlflow"]:
        mlflow(words[2:])
    elif words[:2] == ["-m", "pytest"]:
        tests(words[2:])
    elif words[0] == "tune/run_study.py":
        study(words[1:])
    elif words[0] == "-c":
        exec(compile(words[1], "-c", "exec"), {})
    else:
        program = ROOT / words[0]
        assert program.suffix == ".py", f"{words[0]} is no program of ours"
        known = set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', program.read_text()))
        options = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
        assert options <= known, f"{words[0]} has no {options - known}"


def tests(words):
    """``pytest``: the marks are declared."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    known = {mark.partition(":")[0] for mark in declared} | {"and", "or", "not"}
    for option, word in itertools.pairwise(words):
        assert option != "-m" or set(re.findall(r"\w+", word)) <= known, f"{word} names a mark that is not declared"


def make(words):
    """``make``: the target is one of ours; nothing of it is run."""
    targets = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert words[0] in targets, f"make has no target {words[0]}"
    ran = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def pip(words):
    """``pip install``: constraints and extras exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for option, word in itertools.pairwise(words):
        assert option != "-c" or (ROOT / word).is_file(), f"{word} is not there"
        asked = re.findall(r"\[(.+)\]", word if option == "-e" else "")
        assert set(asked) <= set(extras), f"{asked} is no extra of pyproject.toml"


def ray(words):
    """``ray``: what is submitted is a command of ours."""
    with warnings.catch_warnings():  # Ray's own, when it is imported
        warnings.simplefilter("ignore")
        from ray.scripts.scripts import cli as group

    if "--" in words:
        submitted = words[words.index("--") + 1 :]
        study(submitted[2:] if submitted[0] == "python" else submitted)
    parse(group, words, "ray")


def mlflow(words):
    """``mlflow``."""
    from mlflow.cli import cli as group

    parse(group, words, "mlflow")


def parse(command, words, name):
    """Parse the words of a click program down to its last subcommand; nothing is run."""
    context = None
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=name, parent=context)
        name, command, words = command.resolve_command(context, words)
    command.make_context(name, list(words), parent=context)


def sbatch(words):
    """``sbatch``: what follows the script is ``mmfa-study``'s."""
    script = next(at for at, word in enumerate(words) if word.endswith(".sh"))
    study(words[script + 1 :])


RULES = {
    "mmfa-study": study,
    "mmfa-rank": lambda words: rank.parser().parse_args(words),
    "python": python,
    "pytest": tests,
    "make": make,
    "pip": pip,
    "ray": ray,
    "mlflow": mlflow,
    "sbatch": sbatch,
}
