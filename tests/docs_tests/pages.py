"""What the pages for users tell to type: their code blocks, and the commands in these."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ENDS = {"&&", "||", "|", ";", "&", "(", ")", ";;"}
"""What ends a command in a line of the shell."""
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
OURS = ("mmfa-study", "mmfa-rank", "make", "python", "pytest", "ray", "mlflow", ".venv/bin/python", ".venv/bin/mlflow")
"""Programs that are looked for in running text too."""


class Block(NamedTuple):
    """A code block: where it begins, its language (``shell`` where it is indented), its text."""

    page: Path
    line: int
    kind: str
    text: str

    @property
    def where(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


class Command(NamedTuple):
    """One program with its arguments; ``inline`` where a sentence names it, perhaps without all that it needs."""

    where: str
    words: list[str]
    inline: bool = False


def blocks(page):
    """Return the code blocks of a page, fenced and indented, in their order."""
    found, lines = [], page.read_text().splitlines()
    number, kind, begin, held = 0, None, 0, []
    for number, line in enumerate([*lines, ""], start=1):
        if kind == "shell" and line and not line.startswith("    "):
            found.append(Block(page, begin, kind, "\n".join(held).rstrip()))
            kind = None
        if kind is None and (fence := re.fullmatch(r"```(\w*)", line)):
            kind, begin, held = fence[1] or "nothing", number + 1, []
        elif kind not in (None, "shell") and line == "```":
            found.append(Block(page, begin, kind, "\n".join(held)))
            kind = None
        elif kind is None and line.startswith("    ") and not lines[number - 2].strip():
            kind, begin, held = "shell", number, [line[4:]]
        elif kind is not None:
            held.append(line.removeprefix("    ") if kind == "shell" else line)
    assert kind in (None, "shell"), f"{page.name}: the block of line {begin} has no end"
    return found if kind is None else [*found, Block(page, begin, kind, "\n".join(held).rstrip())]


def typed(text):
    """Return the logical lines that are typed: all, or in a transcript those behind ``$`` (the rest is output)."""
    lines, transcript = [], any(line.startswith("$ ") for line in text.splitlines())
    going_on = False
    for line in text.splitlines():
        if going_on:
            lines[-1] += " " + line.strip()
        elif line.strip() and (not transcript or line.startswith("$ ")):
            lines.append(line.removeprefix("$ ") if transcript else line)
        else:
            continue
        going_on = lines[-1].endswith(("\\", "|"))
        lines[-1] = lines[-1].removesuffix("\\").rstrip()
    return lines


def commands(block):
    """Return the commands of a block of the shell."""
    return [Command(block.where, words) for line in typed(block.text) for words in split(line)]


def split(line):
    """Return the commands of a line as words, without redirections, assignments before them and shell's own words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found, skip = [[]], False
    for token in lexer:
        if token and set(token) <= set("&|;()"):
            assert token in ENDS, f"{token} in {line}"
            found.append([])
        elif token and set(token) <= set("<>"):
            skip = True
        elif skip:
            skip = False
        elif found[-1] or not (ASSIGNMENT.fullmatch(token) or token in ("do", "then")):
            found[-1].append(token)
    return [words for words in found if words]


def inline(page):
    """Return the commands that sentences of a page name: `` `mmfa-study --list` ``."""
    text = page.read_text()
    for block in blocks(page):
        text = text.replace(block.text, "")
    found = []
    for quoted in re.findall(r"`([^`\n]+)`", text):
        if quoted.split()[0] in OURS and " " in quoted and not quoted.startswith("make "):
            found += [Command(page.name, words, inline=True) for words in split(quoted)]
        elif re.fullmatch(r"make [\w-]+( \w+=\S+)*", quoted):
            found.append(Command(page.name, quoted.split(), inline=True))
    return found
