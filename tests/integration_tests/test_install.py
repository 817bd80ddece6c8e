"""The wheel, in an environment of its own, from an empty folder: `smoke` runs and everything it needs is in it."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tune import provenance

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build the wheel, unpack it beside this environment's dependencies, and return the new environment's bin."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    home = folder / "venv"
    venv.create(home, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    ours = Path(sysconfig.get_path("purelib"))
    # The dependencies come from this environment, without its editable install of the project.
    for entry in ours.iterdir():
        if "mmfa_study" not in entry.name:
            (packages / entry.name).symlink_to(entry)
    python = home / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True, cwd=folder)
    return home / "bin"


def test_smoke_runs_from_the_wheel(installed, tmp_path, embedded_cache):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(installed / "mmfa-study"), "--study", "smoke", "--cache-dir", str(embedded_cache)]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Found: " in ran.stdout and "@candidate is now version 1: the best" in ran.stdout
    (result,) = (tmp_path / "mmfa-studies").glob("smoke-????????????.json")
    outcome = json.loads(result.read_text())
    assert outcome["terminal"] == outcome["trials"] == 3
    assert [row["role"] for row in outcome["rows"]][:3] == ["source_only", "target_bn", "baseline"]
    assert "Pictures of the method" in (tmp_path / "mmfa-studies" / "report.html").read_text()


def test_the_wheel_is_what_runs(installed, tmp_path):
    code = "import mmfa, studies, tune; print(mmfa.__file__, studies.__file__, tune.__file__)"
    ran = subprocess.run(
        [str(installed / "python"), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert str(ROOT) not in ran.stdout
    listed = subprocess.run(
        [str(installed / "mmfa-study"), "--list"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "lambdas" in listed.stdout and "smoke" in listed.stdout


def test_without_git_a_run_names_its_sources(installed, tmp_path):
    code = "from tune import provenance; print(provenance.commit())"
    command = [str(installed / "python"), "-c", code]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == provenance.sources() != provenance.commit()


def test_the_script_without_an_installation_says_how(tmp_path):
    """As `ray submit` copies it: alone."""
    script = tmp_path / "run_study.py"
    script.write_text((ROOT / "tune" / "run_study.py").read_text())
    ran = subprocess.run(
        [sys.executable, "-I", "-S", str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert (
        "is not installed; run `make study` once, or `pip install -e .`" in ran.stderr and "Traceback" not in ran.stderr
    )
