"""What can be known to fail before the first trial."""

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
