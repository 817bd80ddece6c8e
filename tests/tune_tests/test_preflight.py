"""What can be known to fail before the first trial."""

import subprocess
import sys
import time

import pytest

from mmfa.config import profile
from mmfa.errors import MmfaError
from tune import preflight


def test_the_content_of_starting_weights_is_part_of_a_study(tmp_path):
    file = tmp_path / "w.pth"
    configs = [profile("embedded"), profile("embedded").with_overrides({"model.weights": str(file)})]
    with pytest.raises(MmfaError, match="--weights must name a file that can be read, but .*w.pth: No such file"):
        preflight.weights_fingerprints(configs)
    file.write_bytes(b"one")
    first = preflight.weights_fingerprints(configs)
    file.write_bytes(b"two")
    assert list(first) == [f"weights {file}"] and preflight.weights_fingerprints(configs) != first
    assert preflight.weights_fingerprints(configs[:1]) == {}


OPEN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from tune import environment, preflight
environment.settle()
out = Path(sys.argv[1])
where = SimpleNamespace(tracking=f"sqlite:///{out / 'mlflow.db'}", out=out)
print(preflight.open_tracking(where, experiment="one to two")[1])
"""


def test_a_kill_while_mlflow_makes_its_database_leaves_nothing_in_the_way(tmp_path):
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + 60
        while not any(new.stat().st_size > 100_000 for new in tmp_path.glob(".mlflow.db.new")):  # half of it, or less
            assert process.poll() is None and time.monotonic() < ends
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and again.stdout.strip().isdigit(), again.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", ".mlflow.db.lock", "mlartifacts"}
