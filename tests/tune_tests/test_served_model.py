"""The registered model in use: from Python, over HTTP, and by ``mmfa-rank``."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import services
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mmfa_tests.conftest import tiny_store
from PIL import Image

from mmfa.config import profile
from mmfa.evaluate import embed
from mmfa.training import Training
from tune import environment, rank
from tune.promotion import Promoted, promote_candidate

NAME = "mmfa-pair"
SMALL = {
    "optim.average_decay": None, "model.id_head_width": 16, "data.num_val_ids": 0, "data.source_batch": 8,
    "data.target_batch": 8, "data.image_height": 32, "data.image_width": 16, "data.store_height": 32,
    "data.store_width": 16, "run.precision": "fp32",
}  # fmt: skip
CONFIG = profile("embedded").with_overrides(SMALL)


@pytest.fixture(scope="module")
def training():
    stores = [tiny_store(f"embedded-{role}", seed=seed) for role, seed in (("source", 1), ("target", 2))]
    return Training(CONFIG, source=stores[0], target=stores[1], device="cpu")


@pytest.fixture(scope="module")
def images(training):
    return training.target.images[:6]


@pytest.fixture(scope="module")
def export(training, tmp_path_factory):
    return training.export(tmp_path_factory.mktemp("export") / "export")


@pytest.fixture(scope="module")
def registry(training, export, images, tmp_path_factory):
    """The URI of an MLflow with one promoted model."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with environment.mlflow_at(uri):
        client = MlflowClient(uri)
        run = client.create_run(client.create_experiment("pair", (folder / "artifacts").as_uri()))
        tags = {"mmfa.study": "s-1", "mmfa.lineage": "search/0001", "selection.labels": "target_val", "protocol": "p"}
        tags |= {"data.fingerprint": "{}", "objective": "target_val/mAP", "objective.value": "0.3"}
        promoted = Promoted(
            name=NAME, run_id=run.info.run_id, export=export, probe=images, check=lambda: None,
            tags={**tags, "config": CONFIG.to_json()},
        )  # fmt: skip
        promote_candidate(client, promoted, value=0.3)
        yield uri


@pytest.fixture(scope="module")
def model(registry):
    path = list(sys.path)
    yield mlflow.pyfunc.load_model(f"models:/{NAME}@candidate")
    sys.path[:] = path  # a model that is loaded adds its code


@pytest.fixture(scope="module")
def expected(training, images):
    return embed(training.model, images, np.arange(6), height=32, width=16, hardware=training.hardware).numpy()


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def in_base64(image):
    return base64.b64encode(encoded(image)).decode()


def test_every_kind_of_input_gives_the_embedding_of_the_evaluation(model, images, expected, tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(6)]
    for file, image in zip(files, images, strict=True):
        file.write_bytes(encoded(image))
    contents, texts = [encoded(image) for image in images], [in_base64(image) for image in images]
    wrapped = ["\n".join(text[at : at + 76] for at in range(0, len(text), 76)) for text in texts]  # as base64(1) does
    kinds = [images, list(images), tuple(files), contents, texts, wrapped, [files[0], contents[1], *images[2:]]]
    kinds += [pd.DataFrame({"image": column}) for column in (texts, contents, files, list(images))]
    kinds += [np.array(texts), pd.DataFrame({"image": texts, "camera": 1})]
    for given in kinds:
        found = model.predict(given)
        assert isinstance(found, np.ndarray) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_images_of_differing_sizes(model, images, expected):
    larger = [np.repeat(np.repeat(image, n, axis=0), n, axis=1) for n, image in enumerate(images, start=1)]
    found = model.predict(larger)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.predict([larger[3]])[0], found[3], rtol=1e-5, atol=1e-6)


def test_no_image_is_no_embedding(model, expected):
    assert model.predict([]).shape == (0, expected.shape[1])


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), r"uint8 \[N, H, W, 3\].* but got float32 \[2, 8, 8, 3\]"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"but got uint8 \[2, 8, 8, 4\]"),
        (np.zeros((8, 8, 3), np.uint8), r"but got uint8 \[8, 8, 3\]"),
        ("photo.jpg", "but got str"),
        (["photo.jpg"], r"image 0 is not; file names are taken as pathlib.Path only"),
        (["YWJj"], "image 0 cannot be decoded"),
        ([np.zeros((8, 8, 3), np.uint8), 7], "but image 1 is int"),
        ([Path("gone.jpg")], "gone.jpg is not: No such file"),
        ([b"no image"], "image 0 cannot be decoded"),
        (pd.DataFrame({"photo": ["x"]}), "this one's columns are: photo"),
        ({"image": ["x"]}, "but got dict"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(model, given, why):
    with pytest.raises(MlflowException, match=why):
        model.predict(given)


def test_a_server_can_be_sent_no_file_name(model, tmp_path, images, monkeypatch):
    """A string is never a path, even where it is valid base64 and the file is there."""
    monkeypatch.chdir(tmp_path)
    Path("abcd").write_bytes(encoded(images[0]))
    for given in (["abcd"], pd.DataFrame({"image": ["abcd"]}), np.array(["abcd"]), [str(tmp_path / "abcd")]):
        with pytest.raises(MlflowException, match=r"cannot be decoded|pathlib.Path only"):
            model.predict(given)


def post(port, payload, kind="application/json"):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", data=payload, headers={"Content-Type": kind}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def wait_until_up(port, process, log):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(300):
        try:
            opener.open(f"http://127.0.0.1:{port}/ping", timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_mlflow_serves_it_on_loopback(registry, model, images, expected, tmp_path):
    """A process of its own, as the docs say: it takes about ten seconds to start."""
    port, log = services.free_port(), tmp_path / "serve.log"
    place = Path(sys.executable).parent
    environment = {**os.environ, "MLFLOW_TRACKING_URI": registry, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{NAME}@candidate"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)],
            env=environment, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until_up(port, process, log)
        text = in_base64(images[0])
        for payload in ({"dataframe_records": [{"image": text}]}, {"inputs": [text]}):
            code, answer = post(port, json.dumps(payload).encode())
            assert code == 200, answer
            np.testing.assert_allclose(np.array(answer["predictions"]), expected[:1], rtol=1e-5, atol=1e-6)
        secret = tmp_path / "secret.png"
        secret.write_bytes(encoded(images[0]))
        for payload in ({"dataframe_records": [{"image": str(secret)}]}, {"inputs": [str(secret)]}):
            code, answer = post(port, json.dumps(payload).encode())
            assert code == 400 and "nobody can have a server read its files" in answer["message"]
        code, answer = post(port, f"image\n{secret}\n".encode(), "text/csv")
        assert code == 400 and "predictions" not in answer
        example = next(Path(registry.removeprefix("sqlite:///")).parent.rglob("serving_input_example.json"))
        code, answer = post(port, example.read_bytes())
        assert code == 200 and len(answer["predictions"]) == 1, "the example that the model carries"
    finally:
        services.end(process)


# mmfa-rank with a registered model


@pytest.fixture
def people(images, tmp_path):
    for number, image in enumerate(images):
        (tmp_path / "gallery").mkdir(exist_ok=True)
        (tmp_path / "gallery" / f"{number}.png").write_bytes(encoded(image))
    return tmp_path


def ranked(people, model, *words):
    given = ["--model", model, "--query", people / "gallery" / "3.png", "--gallery", people / "gallery"]
    return rank.main([str(word) for word in [*given, "--cache-dir", people / "cache", *words]])


def test_a_registered_model_ranks_as_its_export_does(registry, export, people, capsys):
    assert ranked(people, export) == 0
    by_folder = capsys.readouterr().out
    for uri in (f"models:/{NAME}@candidate", f"models:/{NAME}/1"):
        assert ranked(people, uri, "--tracking-uri", registry, "--html", people / "out.html") == 0
        shown = capsys.readouterr()
        assert shown.out.startswith(by_folder) and "embedding" not in shown.err, "the same weights, the same cache"
        assert uri in (people / "out.html").read_text()


def test_mlflows_own_variable_names_the_registry(registry, people, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    assert ranked(people, f"models:/{NAME}@candidate") == 0


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("models:/mmfa-pear@champion", "'mmfa-pear' is not registered; did you mean 'mmfa-pair'?"),
        (f"models:/{NAME}@champion", f"is not there; {NAME} has {NAME}@candidate."),
        (f"models:/{NAME}/7", f"is not there; {NAME} has {NAME}@candidate."),
        (f"models:/{NAME}", "must be models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/@champion", "must be models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_a_model_that_is_not_registered(registry, people, capsys, model, why):
    assert ranked(people, model, "--tracking-uri", registry) == 2
    assert why in capsys.readouterr().err


def test_a_registry_that_is_not_there(people, capsys, monkeypatch):
    monkeypatch.chdir(people)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert ranked(people, f"models:/{NAME}@champion") == 2
    assert "mmfa-studies/mlflow.db is not there; name another with --tracking-uri." in capsys.readouterr().err
    port = services.free_port()
    assert ranked(people, f"models:/{NAME}@champion", "--tracking-uri", f"http://127.0.0.1:{port}") == 2
    assert "MLflow says:" in capsys.readouterr().err
    assert not list(people.glob("**/*.db")), "nothing is made by looking"


def test_an_address_that_is_none(people, capsys, monkeypatch, tmp_path):
    (tmp_path / "text.db").write_text("This is no database, although it is long enough to be one. " * 20)
    uri, port = f"models:/{NAME}@champion", services.free_port()
    for address in (f"sqlite:///{tmp_path / 'text.db'}", f"postgresql://me@127.0.0.1:{port}/mlflow"):
        assert ranked(people, uri, "--tracking-uri", address) == 2
        assert "MLflow says:" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:planted@127.0.0.1:{port}")
    assert ranked(people, uri) == 2
    said = capsys.readouterr().err
    assert "must not hold a password" in said and "planted" not in said


def test_a_registry_without_models(people, registry, tmp_path, capsys):
    empty = tmp_path / "empty.db"
    MlflowClient(f"sqlite:///{empty}").search_experiments()
    assert ranked(people, f"models:/{NAME}@champion", "--tracking-uri", f"sqlite:///{empty}") == 2
    assert "no model is registered there yet" in capsys.readouterr().err


def test_a_registered_model_whose_files_are_gone(people, registry, tmp_path, capsys):
    """Of MLflow's artifacts only the database is there."""
    copied = tmp_path / "mlflow.db"
    shutil.copy(registry.removeprefix("sqlite:///"), copied)
    import sqlite3

    with sqlite3.connect(copied) as database:
        for table, column in (("logged_models", "artifact_location"), ("model_versions", "storage_location")):
            database.execute(f"UPDATE {table} SET {column} = '{(tmp_path / 'nowhere').as_uri()}'")
    assert ranked(people, f"models:/{NAME}@candidate", "--tracking-uri", f"sqlite:///{copied}") == 2
    assert "MLflow says:" in capsys.readouterr().err
