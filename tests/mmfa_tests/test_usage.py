"""What an epoch takes of its machine."""

import pytest
import torch

from mmfa import usage
from mmfa.usage import Usage


class NVMLError(Exception):
    """As that of nvidia-ml-py: of no class that torch knows."""


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 80 GB of which half is free, as far as torch is asked here; return what asks how busy it is."""
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40e9, 80e9))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 5e9)
    monkeypatch.setattr(usage, "SAMPLE_SECONDS", 0.0)
    asked = []

    def answer(with_what):
        def utilization(device):
            asked.append(device)
            if isinstance(with_what, Exception):
                raise with_what
            return with_what

        monkeypatch.setattr(torch.cuda, "utilization", utilization)
        return asked

    return answer


def test_a_cpu():
    taken = Usage(torch.device("cpu"))
    taken.look()
    sum(range(10**6))
    found = taken.take()
    assert found.keys() == {"system/process_cpu_percentage", "system/process_memory_megabytes"}
    assert found["system/process_cpu_percentage"] > 0 and found["system/process_memory_megabytes"] > 50


def test_a_gpu(gpu):
    asked = gpu(60)
    taken = Usage(torch.device("cuda:1"))
    taken.look()
    found = taken.take()
    assert found["system/gpu_utilization_percentage"] == 60 and asked == [torch.device("cuda:1")]
    assert found["system/gpu_memory_usage_percentage"] == 50
    assert found["system/gpu_process_memory_megabytes"] == 5000


@pytest.mark.parametrize("error", [NVMLError("Not Supported"), ImportError("pynvml"), RuntimeError("no driver")])
def test_a_gpu_that_does_not_tell_how_busy_it_is_is_asked_once(gpu, error):
    asked = gpu(error)
    taken = Usage(torch.device("cuda:0"))
    for _ in range(2):
        taken.look()
        taken.look()
        assert "system/gpu_utilization_percentage" not in taken.take()
    assert len(asked) == 1
