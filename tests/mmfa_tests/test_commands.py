"""``python -m mmfa``: what it prints, what it writes, and one sentence for everything that does not hold."""

import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmfa.commands.main import main
from mmfa.commands.shared import Progress
from mmfa.data import replicas
from mmfa.evaluate import evaluate

SMALL = {
    "data.image_height": 32, "data.image_width": 16, "data.store_height": 32, "data.store_width": 16,
    "data.source_batch": 8, "data.target_batch": 8, "data.num_val_ids": 0,
    "optim.num_epochs": 2, "optim.warmup_epochs": 0, "run.precision": "fp32",
}  # fmt: skip


def settings(**changes):
    fields = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    return [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]


def write_people(root, *, first_pid=1, num_ids=10):
    rng = np.random.default_rng(first_pid)
    for folder, pids in (
        ("bounding_box_train", range(first_pid, first_pid + num_ids)),
        ("query", range(first_pid + 50, first_pid + 55)),
        ("bounding_box_test", range(first_pid + 50, first_pid + 55)),
    ):
        (root / folder).mkdir(parents=True)
        for pid in pids:
            colours = np.random.default_rng(pid).integers(0, 256, (2, 3))
            for cam in (1, 2):
                pixels = np.repeat(colours, 16, axis=0)[:, None].repeat(16, axis=1) + rng.normal(0, 9, (32, 16, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(root / folder / f"{pid}_c{cam}_{folder[0]}.png")
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two labelled folders, an unlabelled one, replicas of VIPeR and PRID 2011, and a model trained on the first."""
    root = tmp_path_factory.mktemp("world")
    write_people(root / "people")
    write_people(root / "others", first_pid=100)
    for n in range(12):
        (root / "frames").mkdir(exist_ok=True)
        Image.new("RGB", (16, 32), (20 * n, 99, 30)).save(root / "frames" / f"{n}.jpg")
    for name in ("viper", "prid2011"):
        replicas.write_replica(name, root)
    assert main(train_args(root, "out", target=f"folder:{root / 'others'}")) == 0
    return root


def places(root):
    return ["--data-root", str(root), "--cache-dir", str(root / "cache")]


def train_args(root, out, *, source=None, target, **changes):
    pair = ["--source", source or f"folder:{root / 'people'}", "--target", target]
    return ["train", "--out", str(root / out), "--profile", "embedded", *pair, *settings(**changes), *places(root)]


def refused(capsys, arguments):
    """Run a command that must end with exit code 2, and return its one sentence."""
    assert main([str(word) for word in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mmfa: ")
    return error


# train


def test_a_training_leaves_a_model_and_a_result(world):
    result = json.loads((world / "out" / "result.json").read_text())
    assert sorted(path.name for path in (world / "out").iterdir()) == ["checkpoints", "export", "result.json"]
    assert len(result["epochs"]) == 2 and result["num_train_ids"] == 10 and result["attributes"] == []
    assert 0 < result["metrics"]["target/mAP"] <= 1
    assert result["config"]["data.target"] == f"folder:{world / 'others'}"


def test_a_source_without_attributes_is_said_in_one_line(world, capsys):
    assert main(train_args(world, "unsaid", target=f"folder:{world / 'others'}", optim__num_epochs=1)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"folder:{world / 'people'} has no attributes: L_attr and L_AAL are off."
    assert lines[1].startswith("epoch  1/1  total ")
    nothing = train_args(world, "nothing", target=f"folder:{world / 'others'}", loss__lambda_id=0)
    assert "nothing would be learned; set loss.lambda_id above 0" in refused(capsys, nothing)


def test_an_unlabelled_target_gives_no_accuracy(world, capsys):
    assert main(train_args(world, "frames-out", target=f"folder:{world / 'frames'}")) == 0
    assert "is unlabelled: there will be no accuracy on it" in capsys.readouterr().out
    result = json.loads((world / "frames-out" / "result.json").read_text())
    assert result["metrics"] == {} and len(result["epochs"]) == 2
    swapped = train_args(world, "x", source=f"folder:{world / 'frames'}", target=f"folder:{world / 'people'}")
    assert "A source needs identities" in refused(capsys, swapped)


def test_a_finished_training_is_not_trained_again_and_another_is_refused(world, capsys):
    before = (world / "out" / "result.json").read_bytes()
    assert main(train_args(world, "out", target=f"folder:{world / 'others'}")) == 0
    printed = capsys.readouterr().out
    assert "going on after epoch 2 of 2" in printed and "epoch  1/2" not in printed
    assert (world / "out" / "result.json").read_bytes() == before
    other = train_args(world, "out", target=f"folder:{world / 'others'}", optim__learning_rate=0.2)
    assert "differs in optim.learning_rate" in refused(capsys, other)


def test_a_killed_training_goes_on_to_the_same_result(world):
    arguments = train_args(world, "killed", target=f"folder:{world / 'others'}")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-m", "mmfa", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("epoch  1/2"):
            process.send_signal(signal.SIGINT)
            break
    _, error = process.communicate()
    assert process.returncode in (130, 0)
    assert process.returncode == 0 or "interrupted. The same command goes on" in error
    assert main(arguments) == 0
    one, other = (json.loads((world / out / "result.json").read_text()) for out in ("killed", "out"))
    assert one["metrics"] == other["metrics"]
    losses = [[epoch["train/loss_total"] for epoch in result["epochs"]] for result in (one, other)]
    assert losses[0] == losses[1]


def test_a_profile_is_written_and_told_once(world, capsys):
    folder = world / "deep" / "trace"
    arguments = train_args(world, "traced", target=f"folder:{world / 'others'}")
    assert main([*arguments, "--torch-trace", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.count("where the time of a step went:") == 1 and out.count(f"trace: {folder / 'trace.json.gz'}") == 1
    assert out.index("epoch  1/2") < out.index("where the time") < out.index("epoch  2/2")
    assert sorted(path.name for path in folder.iterdir()) == ["operations.txt", "parts.csv", "trace.json.gz"]
    plain, traced = (json.loads((world / name / "result.json").read_text()) for name in ("out", "traced"))
    assert traced["metrics"] == plain["metrics"] and traced["hardware"]["backbone"] == "eager"
    (world / "file").touch()
    words = refused(capsys, [*arguments, "--torch-trace", world / "file" / "below"])
    assert "--torch-trace must name a folder that can be written" in words


@pytest.mark.parametrize("name", ["viper", "prid2011"])
def test_adaptation_to_a_split_is_tested_on_that_split_alone(world, capsys, name):
    out = f"to-{name}"
    assert main(train_args(world, out, target=name, data__split=3, optim__num_epochs=1)) == 0
    file = world / f"{out}.json"
    options = ["--dataset", name, "--json", str(file), *places(world)]
    assert main(["evaluate", str(world / out / "export"), *options]) == 0
    found = json.loads(file.read_text())
    assert {row["split"] for row in found["splits"]} == {3}
    assert found["mode"] == "adapted on this dataset's unlabelled training images"
    assert "sd" not in found["summary"][found["splits"][0]["direction"]]["mAP"]
    too_small = train_args(world, "x", source=name, target=f"folder:{world / 'others'}", data__num_val_ids=2)
    assert f"{name} is too small to hold out from" in refused(capsys, too_small)


# evaluate


def test_the_ten_splits_are_summarised(world, capsys):
    file = world / "viper.json"
    options = ["--dataset", "viper", "--json", str(file), *places(world)]
    assert main(["evaluate", str(world / "out" / "export"), *options]) == 0
    printed = capsys.readouterr().out
    assert "viper: direct (no adaptation to this dataset)" in printed
    assert "mean of 10 splits ± sd (se by Nadeau and Bengio)" in printed and "A → B" in printed
    found = json.loads(file.read_text())
    assert len(found["splits"]) == 30 and list(found["summary"]) == ["a_to_b", "b_to_a", "mean"]
    values = [row["rank1"] for row in found["splits"] if row["direction"] == "mean"]
    summary = found["summary"]["mean"]["rank1"]
    assert summary["mean"] == pytest.approx(statistics.fmean(values))
    assert summary["sd"] == pytest.approx(statistics.stdev(values))
    assert summary["se"] == pytest.approx(statistics.stdev(values) * 1.1**0.5)
    by_split = {(row["split"], row["direction"]): row["mAP"] for row in found["splits"]}
    assert by_split[0, "mean"] == pytest.approx((by_split[0, "a_to_b"] + by_split[0, "b_to_a"]) / 2)


def test_the_figures_are_those_of_the_methods_own_evaluation(world):
    from mmfa.checkpoint import load_model
    from mmfa.data.store import open_store
    from mmfa.hardware import Hardware

    file = world / "prid.json"
    options = ["--dataset", "prid2011", "--json", str(file), *places(world)]
    assert main(["evaluate", str(world / "out" / "export"), *options]) == 0
    model, config = load_model(world / "out" / "export")
    store = open_store(next((world / "cache" / "stores").glob("prid2011-32x16-*.arrow")))
    domain = store.domain.with_split(7)
    report = evaluate(
        model, store, query_rows=domain.rows("query"), gallery_rows=domain.rows("gallery"),
        height=32, width=16, hardware=Hardware.choose("cpu", config.run),
    )  # fmt: skip
    found = next(row for row in json.loads(file.read_text())["splits"] if row["split"] == 7)
    assert found["mAP"] == pytest.approx(report.mAP, abs=1e-6) and found["rank5"] == pytest.approx(report.rank(5))


def test_a_data_root_without_benchmarks_is_told_what_to_do(world, tmp_path, capsys):
    assert main(["check", "--data-root", str(tmp_path)]) == 1
    assert "A benchmark would lie in " in capsys.readouterr().out
    assert main(["check", "--data-root", str(world / "people")]) == 1
    assert f"is a dataset itself: give {world}, or name folder:" in capsys.readouterr().out


def test_the_source_and_the_target_are_named_as_such(world, capsys):
    for name, mode in (("people", "the model's own source"), ("others", "adapted on this dataset's unlabelled")):
        dataset = f"folder:{world / name}"
        assert main(["evaluate", str(world / "out" / "export"), "--dataset", dataset, *places(world)]) == 0
        assert mode in capsys.readouterr().out


def test_what_cannot_be_evaluated_is_refused(world, capsys):
    export = str(world / "out" / "export")
    assert "is missing" in refused(capsys, ["evaluate", world / "nowhere", "--dataset", "viper", *places(world)])
    assert "did you mean 'viper'" in refused(capsys, ["evaluate", export, "--dataset", "vipr"])
    assert "--data-root" in refused(capsys, ["evaluate", export, "--dataset", "viper"])
    frames = ["evaluate", export, "--dataset", f"folder:{world / 'frames'}", *places(world)]
    assert "folder-frames-" in (said := refused(capsys, frames)) and " is unlabelled" in said
    unwritable = ["--dataset", "prid2011", "--json", world / "no" / "x.json", *places(world)]
    assert "--json must name a file that can be written" in refused(capsys, ["evaluate", export, *unwritable])
    epoch = next((world / "out" / "checkpoints").iterdir())
    assert "not an exported model" in refused(capsys, ["evaluate", epoch, "--dataset", "viper", *places(world)])


# check and prepare


def test_check_says_what_is_there(world, capsys):
    assert main(["check", *places(world)]) == 0
    printed = capsys.readouterr().out
    assert "not there: market1501, dukemtmc-reid" in printed
    assert "persons in both             632  as published" in printed and "a synthetic replica" in printed
    assert main(["check", f"folder:{world / 'people'}", f"folder:{world / 'frames'}"]) == 0
    printed = capsys.readouterr().out
    assert "no attributes" in printed and "unlabelled images 12" in " ".join(printed.split())


def test_check_names_problems(world, tmp_path, capsys):
    (tmp_path / "VIPeR" / "cam_a").mkdir(parents=True)
    assert main(["check", "--data-root", str(tmp_path)]) == 1
    assert "PROBLEM: VIPeR was looked for" in capsys.readouterr().out
    (tmp_path / "VIPeR" / "cam_b").mkdir()
    for view in "ab":
        (tmp_path / "VIPeR" / f"cam_{view}" / "001_0.bmp").write_bytes(b"")
    assert main(["check", "--data-root", str(tmp_path)]) == 0
    assert "published: 632" in capsys.readouterr().out
    assert main(["check", "--strict-counts", "--data-root", str(tmp_path)]) == 1
    assert "PROBLEM: persons in cam_a: 1 found, 632 published" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["check", "--data-root", str(tmp_path / "empty")]) == 1
    assert main(["check", "prid2011", *places(world)]) == 0


def test_check_names_identities_without_annotation(tmp_path, capsys):
    from mmfa.data.attributes import MARKET, MARKET_FIELDS, write_mat
    from mmfa.data.records import AttributeCodes

    root = write_people(tmp_path / "people", num_ids=3)
    codes = AttributeCodes(fields=MARKET_FIELDS, pids=np.array([1, 3]), codes=np.ones((2, 27), np.uint8))
    write_mat(root / "market_attribute.mat", codes, kind=MARKET, train_pids=codes.pids)
    assert main(["check", f"folder:{root}"]) == 1
    printed = capsys.readouterr().out
    assert "lacks identity 2 of training" in printed and "27 fields" in printed and "joined to 2 of 8" in printed


def test_prepare_says_sizes_and_names_a_damaged_image(world, tmp_path, capsys):
    size = ["--height", "32", "--width", "16"]
    assert main(["prepare", "viper", *size, *places(world)]) == 0
    assert "viper: 1,264 images of 32 x 16, 2 MB" in capsys.readouterr().out
    root = write_people(tmp_path / "people", num_ids=3)
    damaged = root / "query" / "51_c1_q.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    message = refused(capsys, ["prepare", f"folder:{root}", *size, "--cache-dir", tmp_path / "cache"])
    assert f"must be an intact JPEG or PNG or BMP, but {damaged} cannot be decoded; restore it" in message
    assert "data.store_height >= 16 must hold" in refused(capsys, ["prepare", "viper", "--height", "3", *places(world)])


# replica


def test_replica_says_that_it_is_synthetic_and_overwrites_nothing(tmp_path, capsys):
    arguments = ["replica", "prid2011", "--data-root", str(tmp_path)]
    assert main(arguments) == 0
    assert "a SYNTHETIC replica of prid2011" in capsys.readouterr().out
    assert "is there already" in refused(capsys, arguments)
    assert "even number of pixels" in refused(capsys, [*arguments, "--height", "7"])
    assert "--seed must be 0 or more" in refused(capsys, [*arguments, "--seed", "-1"])


# The command line itself


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "COMMAND. See python -m mmfa --help"),
        (["chek"], "invalid choice: 'chek'"),
        (["train"], "required: --out. See python -m mmfa train --help"),
        (["train", "--out", "x", "--profil", "paper"], "'--profil' is not an option; did you mean '--profile'"),
        (["train", "--out", "x", "--set", "optim.num_epochs"], "--set takes KEY=VALUE"),
        (["train", "--out", "x", "--set", "optim.num_epoch=2"], "did you mean 'optim.num_epochs'"),
        (["train", "--out", "x", "--seed", "1", "--set", "run.seed=2"], "set once, but run.seed is given twice"),
        (["train", "--out", "x", "--source", "market"], "'market' is not a dataset; did you mean 'market1501'"),
        (["train", "--out", "x", "--data-root", "/nowhere"], "--data-root must be a folder"),
        (["train", "--out", "x", "--set", "data.split=10"], "data.split <= 9 must hold, but got 10"),
        (["check"], "none was given; name it with --data-root DIR"),
        (["check", "viper"], "none was given"),
        (["check", "viperr"], "did you mean 'viper'"),
        (["prepare", "viperr"], "did you mean 'viper'"),
        (["replica", "msmt17", "--data-root", "/nowhere/x"], "A replica is of one of market1501"),
    ],
)
def test_bad_input_is_one_sentence(capsys, arguments, sentence):
    assert sentence in refused(capsys, arguments)


def test_weights_is_a_shorthand(world, capsys):
    arguments = train_args(world, "x", target=f"folder:{world / 'others'}")
    assert "nowhere.pth" in refused(capsys, [*arguments, "--weights", world / "nowhere.pth"])


@pytest.mark.parametrize("command", ["", "check", "prepare", "train", "evaluate", "replica"])
def test_help_reads_without_torch(command):
    code = "import sys; from mmfa.commands.main import parser; print(parser().parse_args(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    words = [word for word in (command, "--help") if word]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "python -m mmfa" in done.stdout and len(done.stdout) > 400
    heavy = "import sys, mmfa.commands.main; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, env=environment)
    assert done.stdout == "[]\n"


def test_progress_is_sparse_without_a_terminal(capsys):
    progress = Progress()
    for done in range(1, 101):
        progress("decoding", done, 100)
    assert capsys.readouterr().err == "decoding: 100 of 100 (100%)\n"
