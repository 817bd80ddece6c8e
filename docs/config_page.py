"""Write docs/config.md, every field of the config with its meaning: ``python docs/config_page.py``."""

import ast
import dataclasses
from pathlib import Path

from mmfa.config import PROFILES, TrialConfig

HERE = Path(__file__).parent
SOURCE = HERE.parent / "mmfa" / "config.py"


def docstrings() -> dict[str, str]:
    """Return the docstring under each field, by ``Class.field``."""
    found = {}
    for node in ast.parse(SOURCE.read_text()).body:
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(text, ast.Expr)
                    and isinstance(text.value, ast.Constant)
                ):
                    found[f"{node.name}.{field.target.id}"] = " ".join(text.value.value.split())
    return found


def page() -> str:
    """Return the page as Markdown."""
    texts, config = docstrings(), TrialConfig()
    lines = [
        "# Every field of the config",
        "",
        "Made by `python docs/config_page.py`. Each can be set with `--set section.field=VALUE` (VALUE as in TOML:",
        "`3`, `0.1`, `true`, `[1, 5, 10]`, a bare word), fixed in a study under `[fixed]`, searched under `[space]`.",
        "The defaults are the paper's; the profile `embedded` differs where the last column says so.",
    ]
    for section in dataclasses.fields(config):
        group = getattr(config, section.name)
        lines += [
            "",
            f"## {section.name}",
            "",
            "| field | default | limits | meaning | embedded |",
            "|---|---|---|---|---|",
        ]
        for field in dataclasses.fields(group):
            name = f"{section.name}.{field.name}"
            signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
            limits = ", ".join(f"{signs[key]} {value}" for key, value in field.metadata.items())
            other = PROFILES["embedded"].get(name)
            meaning = texts[f"{type(group).__name__}.{field.name}"].replace("|", "or")
            value = getattr(group, field.name)
            shown = "none" if value is None else list(value) if isinstance(value, tuple) else value
            lines.append(f"| `{name}` | {shown} | {limits} | {meaning} | {'' if other is None else other} |")
    return "\n".join(lines).replace("``", "`") + "\n"


if __name__ == "__main__":
    (HERE / "config.md").write_text(page())
