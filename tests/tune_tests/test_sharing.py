"""How many trials share a GPU: the choice, and what happens when memory runs out. The measurement itself is run for
real in integration_tests/test_nodes.py."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from tune_tests.test_search import Driver

from mmfa.config import profile
from mmfa.errors import MmfaError
from studies import library
from studies.resolve import resolve
from tune import job as job_module
from tune import joining, nodes, sharing, trainable
from tune.cluster import Cluster, room
from tune.lease import Fence
from tune.sharing import Sample, choose

GIB = 2**30


def device(*, epoch, peak, total=80, memory_error_at=99):
    """Return what a GPU would answer: seconds of an epoch by the number of trials, and the memory of each."""
    asked = []

    def measure(trials):
        asked.append(trials)
        return None if trials >= memory_error_at else Sample(trials, epoch[trials], peak * GIB, total * GIB)

    return measure, asked


@pytest.mark.parametrize(
    ("gpu", "chosen", "asked"),
    [
        ({"epoch": {1: 10, 2: 12, 4: 20, 8: 40}, "peak": 5}, 4, [1, 2, 4, 8]),  # 8 brings no more than 4
        ({"epoch": {1: 10, 2: 20}, "peak": 5}, 1, [1, 2]),  # no gain at all: one alone
        ({"epoch": {1: 10, 2: 10, 4: 10}, "peak": 30}, 2, [1, 2, 4]),  # four would not fit
        ({"epoch": {1: 10, 2: 10, 4: 10}, "peak": 5, "memory_error_at": 4}, 2, [1, 2, 4]),
        ({"epoch": {1: 10, 2: 10, 4: 10, 8: 10, 16: 10}, "peak": 1}, 16, [1, 2, 4, 8, 16]),
    ],
)
def test_the_number_with_the_most_trials_an_hour_under_the_cap_is_chosen(gpu, chosen, asked):
    measure, seen = device(**gpu)
    assert choose(measure)[0] == chosen
    assert seen == asked


def test_no_more_are_tried_than_the_cores_can_feed():
    measure, seen = device(epoch={1: 10, 2: 10, 4: 10}, peak=1)
    assert choose(measure, most=3)[0] == 2
    assert seen == [1, 2]


@pytest.mark.parametrize("gpu", [{"epoch": {1: 10}, "peak": 79}, {"epoch": {1: 10}, "peak": 1, "memory_error_at": 1}])
def test_a_trial_that_does_not_fit_alone_is_refused_with_a_way_out(gpu):
    with pytest.raises(MmfaError, match=r"more than 90% of a GPU's memory even alone; make data.source_batch"):
        choose(device(**gpu)[0])


def test_what_was_measured_is_told():
    _, samples = choose(device(epoch={1: 10, 2: 12, 4: 24}, peak=5)[0])
    assert sharing.told(samples).startswith("1 on a GPU: 360 epochs an hour, 5.0 GiB each; 2 on a GPU: 600 epochs")
    assert json.loads(json.dumps(sharing.as_record(samples)))[1] == dataclasses.asdict(samples[1])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_a_trial_out_of_memory_fails_with_a_mark_and_not_by_a_traceback(job, monkeypatch, error):
    def full(job, notes):
        raise error

    monkeypatch.setattr(trainable, "_open", full)
    (row,) = trainable.train(dataclasses.replace(job, trials_per_gpu=4))
    assert row == {"failed": "out of GPU memory with 4 trials on a GPU", "out_of_memory": True}


def test_another_runtime_error_is_no_lack_of_memory(job, monkeypatch):
    def broken(job, notes):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(trainable, "_open", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        list(trainable.train(job))


@pytest.fixture
def job(tmp_path):
    Fence(str(tmp_path / "fence"), 1).put_up()
    return job_module.Job(
        name="search/0000", config=profile("embedded").to_json(), source_store="", target_store="",
        folder=str(tmp_path), attempt=1, fence_folder=str(tmp_path / "fence"), fence_counter=1, threads=1,
        reading="", criteria={},
    )  # fmt: skip


def test_out_of_memory_beside_others_goes_on_with_half_as_many(tmp_path):
    plan = resolve(library.load("lambdas"), profile_name="embedded", overrides={})
    driver = Driver(f"sqlite:///{tmp_path / 'ledger.db'}", plan, tmp_path)
    (full, _), (other, _) = driver.suggest(), driver.suggest()
    row = {"failed": "out of GPU memory with 4 trials on a GPU", "out_of_memory": True}
    driver.searcher.on_trial_complete(trial_id=full, result={job_module.ROW: json.dumps(row)})
    assert driver.searcher.out_of_memory == ["controls/baseline-s1"]
    assert driver.suggest()[1] == "FINISHED", "nothing more is started beside those that run"
    driver.finish(other, 0.3)

    said, kept = [], {}
    session = SimpleNamespace(remember=kept.__setitem__, request=SimpleNamespace(workers=None))
    console = SimpleNamespace(say=said.append)
    ray = Cluster({"cpu": 1, "gpu": 0.25}, 4, None, joined=True, trials_per_gpu=4)
    fewer, why = joining.thinned(session, ray, tuple(driver.stages.values()), console, fitting=lambda trial: 2)
    assert (fewer.trials_per_gpu, fewer.resources["gpu"], fewer.workers, why) == (2, 0.5, 2, "")
    assert kept == {joining.REMEMBERED: 2} and "goes on with 2" in said[0]
    again = driver.stages["controls"].lineages()[0]
    assert again.state == "waiting" and len(again.attempts) == 2, "it is tried again, as the same lineage"


def test_out_of_memory_alone_ends_the_study_with_a_way_out():
    ray = Cluster({"cpu": 1, "gpu": 1.0}, 1, None, joined=True)
    same, why = joining.thinned(None, ray, (), None)
    assert same is ray and "although it had the GPU to itself; make data.source_batch" in why


@pytest.mark.parametrize(
    ("node", "trial", "fit"),
    [
        ({"CPU": 16.0, "GPU": 2.0}, {"cpu": 1, "gpu": 1 / 3}, 6),
        ({"CPU": 4.0, "GPU": 2.0}, {"cpu": 1, "gpu": 1 / 3}, 4),
        ({"CPU": 64.0}, {"cpu": 1, "gpu": 1 / 3}, 0),
        ({"CPU": 7.0}, {"cpu": 2}, 3),
    ],
)
def test_trials_are_counted_node_by_node(node, trial, fit):
    assert room(node, trial) == fit


@pytest.mark.parametrize(("cpus", "gpus", "most"), [(64, 8, 8), (16, 8, 2), (8, 8, 1), (4, 8, 1), (96, 1, 16)])
def test_no_gpu_is_starved_by_trials_packed_on_another(monkeypatch, cpus, gpus, most):
    """Ray fills one GPU after the other: 16 trials on each of 8 GPUs would need 128 CPUs."""
    asked = []
    monkeypatch.setattr(
        joining, "_kinds_of_gpus", lambda: {"H200": (SimpleNamespace(name="n"), {"CPU": cpus, "GPU": gpus})}
    )
    monkeypatch.setattr(
        sharing, "choose", lambda measure, *, most: (asked.append(most), (most, [Sample(most, 1.0, 1, 80)]))[1]
    )
    assert joining._measured(session(cpus=1), SimpleNamespace(say=lambda text: None)) == most == asked[0]


def test_of_each_kind_the_node_with_the_fewest_cpus_for_a_gpu_is_measured(monkeypatch):
    """Eight CPUs for one GPU are more than sixteen for eight."""
    have = {
        "a": {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H200": 1.0},
        "b": {"CPU": 16.0, "GPU": 8.0, "accelerator_type:H200": 1.0},
        "c": {"CPU": 4.0, "GPU": 1.0, "accelerator_type:A10G": 1.0},
        "d": {"CPU": 2.0},
        "e": {"GPU": 1.0},
    }
    monkeypatch.setattr(
        joining.ray, "nodes", lambda: [{"NodeID": name, "Alive": True, "Resources": one} for name, one in have.items()]
    )
    monkeypatch.setattr(nodes, "alive", lambda: [nodes.Node(name, name) for name in have])
    assert {kind: node.name for kind, (node, _) in joining._kinds_of_gpus().items()} == {
        "H200": "b", "A10G": "c", "GPU": "e",
    }  # fmt: skip


@pytest.mark.parametrize(("trials", "share"), [(1, 1.0), (2, 0.45), (4, 0.225)])
def test_a_process_may_take_its_share_of_a_gpu_s_memory_and_no_more(monkeypatch, trials, share):
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", given.append)
    sharing.limit_memory(trials)
    assert given == [pytest.approx(share)]


def test_a_node_with_too_few_cpus_for_a_trial_is_named(monkeypatch):
    monkeypatch.setattr(joining, "_kinds_of_gpus", lambda: {"H200": (SimpleNamespace(name="n"), {"CPU": 2, "GPU": 1})})
    with pytest.raises(MmfaError, match="a trial takes 4 CPUs, but node n has 2; lower --cpus-per-trial"):
        joining._measured(session(cpus=4), SimpleNamespace(say=lambda text: None))


def session(*, cpus):
    config = profile("embedded")
    return SimpleNamespace(
        plan=SimpleNamespace(baseline=config),
        stores=SimpleNamespace(paths={config.data.source: "s", config.data.target: "t"}),
        request=SimpleNamespace(cpus_per_trial=cpus),
        remember=lambda key, value: None,
    )
