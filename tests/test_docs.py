"""What the docs say is what the code does."""

import importlib.util
import re
from pathlib import Path

import pytest

from mmfa.config import field_names
from studies import library

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_of_the_config_is_up_to_date():
    spec = importlib.util.spec_from_file_location("config_page", ROOT / "docs" / "config_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "config.md").read_text()
    assert written == module.page(), "run python docs/config_page.py"
    assert all(f"`{name}`" in written for name in field_names())


@pytest.mark.parametrize("page", sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_names_every_shipped_study():
    text = (ROOT / "README.md").read_text()
    assert [name for name in library.names() if f"`{name}`" not in text] == []


def test_readme_links_each_page_once():
    linked = re.findall(r"\]\((docs/[\w./-]+\.md)\)", (ROOT / "README.md").read_text())
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert {page: linked.count(page) for page in pages} == dict.fromkeys(pages, 1)


def test_every_picture_is_small_and_shown():
    shown = "".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert f"pictures/{picture.name})" in shown and picture.stat().st_size < 150_000, picture.name


def test_every_message_of_the_faq_is_said_somewhere():
    """Quoted as it is written in the source, where a sentence may be broken over lines."""
    page = (ROOT / "docs" / "faq.md").read_text().partition("## Questions")[0]
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    said = "".join(
        path.read_text() for name in ("mmfa", "studies", "tune") for path in sorted((ROOT / name).rglob("*.py"))
    )
    said = re.sub(r"\"\s*\n\s*f?\"", "", said)
    assert len(quoted) > 15
    for message in quoted:
        assert message in said, f"nothing says {message!r} any more"
