"""What happens between the phases of a study."""

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from tune_tests.made_up import MadeUp, searching

from tune import launch, promotion

DOWN = MlflowException("API request to http://127.0.0.1:5000 failed: Connection refused")


@pytest.fixture
def outage(monkeypatch):
    """Have MLflow fail so many times when it is asked for the champion; return what was asked."""
    asked, real = [], promotion.standing_champion

    def fail(times, error=DOWN):
        def answer(*arguments, **more):
            asked.append(arguments)
            if len(asked) <= times:
                raise error
            return real(*arguments, **more)

        monkeypatch.setattr(promotion, "standing_champion", answer)
        monkeypatch.setattr(launch, "RETRY_SECONDS", 0.01)
        return asked

    return fail


def test_an_outage_of_mlflow_at_the_end_of_a_search_is_waited_for(tmp_path, outage, capsys):
    asked = outage(3)
    assert MadeUp(tmp_path, searching(trials=4)).run() == 0
    assert len(asked) == 4
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("MLflow does not answer (API request to http://127.0.0.1:5000 failed") == 1
    assert "what is to be confirmed waits for it" in said and "To be confirmed on 3 fresh seeds" in said


def test_an_outage_that_lasts_is_an_error(tmp_path, outage, monkeypatch):
    outage(1000)
    monkeypatch.setattr(launch, "PATIENCE_SECONDS", 0.1)
    with pytest.raises(MlflowException, match="Connection refused"):
        MadeUp(tmp_path, searching(trials=4)).run()


def test_a_refusal_is_not_waited_for(tmp_path, outage, capsys):
    asked = outage(1000, MlflowException("no", error_code=PERMISSION_DENIED))
    with pytest.raises(MlflowException, match="no"):
        MadeUp(tmp_path, searching(trials=4)).run()
    assert len(asked) == 1 and "waits for it" not in capsys.readouterr().out
