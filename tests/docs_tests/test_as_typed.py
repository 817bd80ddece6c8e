"""`make ui` and the whole of the README's commands, as a reader types them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import services
from docs_tests import pages
from docs_tests.pages import ROOT

MOST = 15 * 60
"""Seconds from the clone to a ranked gallery on two cores; what the README promises."""


def serving(address, process, *, seconds):
    """Wait until a server answers /health; return what it says."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=1) as answer:
            return answer.read()
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.nightly
def test_make_ui_serves_what_is_there_and_ends_with_ctrl_c(studied, tmp_path):
    port = services.free_port()
    installed = ["-o", ".venv/.installed"]  # whatever is newer than the environment, nothing is installed for a test
    named = [f"OUT={studied.folder / 'mmfa-studies'}", f"PORT={port}", f"BIN={Path(sys.executable).parent}"]
    log = (tmp_path / "log.txt").open("wb")
    process = subprocess.Popen(
        ["make", *installed, "ui", *named],
        cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        assert serving(f"http://127.0.0.1:{port}", process, seconds=120) == b"OK"
        started = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert {os.getpgid(one.pid) for one in started} == {process.pid}
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
        assert psutil.wait_procs(started, timeout=30)[1] == []
    finally:
        services.end(process)
    assert f"http://127.0.0.1:{port}" in (tmp_path / "log.txt").read_text()


def test_make_ui_says_what_is_missing(tmp_path):
    command = ["make", "-o", ".venv/.installed", "ui", f"OUT={tmp_path}"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode and "run make study first" in ran.stdout


@pytest.mark.nightly
def test_the_champion_is_served_as_typed(reader, tmp_path, monkeypatch):
    """docs/champion.md: the server in one terminal, the picture sent to it from another."""
    page = pages.blocks(ROOT / "docs" / "champion.md")
    (serve,) = [block.text for block in page if block.kind == "shell" and "mlflow models serve" in block.text]
    (send,) = [block.text for block in page if block.kind == "shell" and "curl" in block.text]
    port = str(services.free_port())
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    log = (tmp_path / "log.txt").open("wb")
    process = subprocess.Popen(
        ["bash", "-euc", serve.replace("5001", port)],
        cwd=reader.folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        serving(f"http://127.0.0.1:{port}", process, seconds=120)
        typed = send.replace("5001", port).replace("curl", "curl --noproxy '*'")
        answer = subprocess.run(
            ["bash", "-euc", typed], cwd=reader.folder, capture_output=True, text=True, check=True, timeout=120
        )
        (embedding,) = json.loads(answer.stdout)["predictions"]
        assert len(embedding) == 128
    finally:
        services.end(process)


@pytest.mark.nightly
def test_the_readme_from_a_clone_to_a_ranked_gallery(tmp_path):
    """What the README tells to type, in its order but for `make ui`, with installing and in less than 15 minutes."""
    typed = [block.text for block in pages.blocks(ROOT / "README.md") if block.kind == "shell"]
    (study,) = [text for text in typed if text.startswith("make study")]
    (rank,) = [text for text in typed if "mmfa-rank" in text]
    without_server = "\n".join(line for line in study.splitlines() if not line.startswith("make ui"))
    clone, began = tmp_path / "clone", time.monotonic()
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "OMP_", "MMFA_"))}
    log = tmp_path / "log.txt"
    process = subprocess.Popen(
        ["bash", "-euc", f"{without_server}\n{rank}"],
        cwd=clone, env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.wait(3 * MOST) == 0, log.read_text()[-3000:]
    finally:
        services.end(process)
    took = time.monotonic() - began
    print(f"from the clone to a ranked gallery: {took:.0f} s")
    assert "data:image/" in (clone / "ranked.html").read_text()
    assert "Found: " in log.read_text() and (clone / "mmfa-studies" / "report.html").is_file()
    assert took < MOST, f"the README promises less, but it took {took:.0f} s"
