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
