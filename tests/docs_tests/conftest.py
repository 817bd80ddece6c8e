"""One recorded study for all pages: the one that docs/notebook.md runs."""

import contextlib
import io
import re
import shutil
import sys
import types

import pytest
from docs_tests.pages import ROOT, blocks
from mlflow.tracking import MlflowClient

from tune import rank

MODEL = "mmfa-embedded-source-to-embedded-target"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home of a reader, who also works there: folders of images, and the study that a page shows as a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for image in ("data/readme.txt", "ours/cam1/a.jpg"):
        (tmp_path / image).parent.mkdir(parents=True)
        (tmp_path / image).touch()
    shown = next(block for block in blocks(ROOT / "docs" / "writing-a-study.md") if block.kind == "toml")
    (tmp_path / "mine.toml").write_text(shown.text)
    return tmp_path


@pytest.fixture
def reader(champion, monkeypatch):
    """The folder of the study as the place of work, and an MLflow of which nothing was set, there and afterwards."""
    monkeypatch.chdir(champion.folder)
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    monkeypatch.setattr("mlflow.tracking._model_registry.utils._registry_uri", None)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "")  # so that what was there, perhaps nothing, comes back
        monkeypatch.delenv(name)
    return champion


@pytest.fixture(scope="session")
def studied(tmp_path_factory, embedded_cache):
    """The folder in which docs/notebook.md was followed, the names that it left, each block with what it printed."""
    folder = tmp_path_factory.mktemp("docs")
    names, shown = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MMFA_CACHE_DIR", str(embedded_cache))
        for block in blocks(ROOT / "docs" / "notebook.md"):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                if block.kind == "python":
                    exec(compile(block.text, block.where, "exec"), names)
            shown.append((block, printed.getvalue()))
    (database,) = folder.glob("mmfa-studies/mlflow.db")
    name = re.search(r"smoke-\w{12}", names["frame"].attrs["study"])[0]
    return types.SimpleNamespace(folder=folder, names=names, shown=shown, study=name, tracking=f"sqlite:///{database}")


@pytest.fixture(scope="session")
def champion(studied, embedded_cache):
    """The same folder with what docs/champion.md takes for granted: a champion, its export, images to look in."""
    MlflowClient(studied.tracking).set_registered_model_alias(MODEL, "champion", "1")
    with rank.fetched(f"models:/{MODEL}@champion", tracking=studied.tracking) as exported:
        shutil.copytree(exported, studied.folder / "first" / "export")
    rendered = sorted(embedded_cache.glob("datasets/embedded-target-v*"))[-1]
    frames = studied.folder / "frames"
    frames.mkdir()
    for image in sorted((rendered / "bounding_box_test").glob("*.jpg"))[:12]:
        shutil.copy(image, frames)
    shutil.copy(sorted((rendered / "query").glob("*.jpg"))[0], studied.folder / "someone.jpg")
    (studied.folder / ".venv").symlink_to(sys.prefix)  # the pages activate it
    return studied
