"""What the driver knows of the ledger's tables against what Optuna reads from them, on SQLite and PostgreSQL."""

import math
import random

import optuna
import pytest
import services
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState

from tune.database import BEST
from tune.ledger import Ledger

SPACE = {
    "x": optuna.distributions.FloatDistribution(1e-3, 10.0, log=True),
    "n": optuna.distributions.IntDistribution(1, 9),
    "kind": optuna.distributions.CategoricalDistribution(("max", "average", 3, None, True)),
}
FIELDS = (
    "number", "state", "values", "params", "distributions", "user_attrs", "system_attrs", "intermediate_values",
    "datetime_start", "datetime_complete",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with services.postgres(tmp_path_factory.mktemp("pg"), *(f"d{index}" for index in range(8))) as urls:
        yield iter(urls)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    return f"sqlite:///{tmp_path / 'l.db'}" if request.param == "sqlite" else next(request.getfixturevalue("server"))


@pytest.fixture
def stage(url):
    return Ledger(url).open("study", stage="search")


def plain(trial):
    """Return a trial's fields; NaN is equal to itself in them."""
    found = {name: getattr(trial, name) for name in FIELDS}
    steps = found["intermediate_values"].items()
    return found | {"intermediate_values": {at: "nan" if math.isnan(value) else value for at, value in steps}}


def in_the_tables(url):
    return [plain(trial) for trial in optuna.load_study(study_name="study", storage=url).get_trials(deepcopy=False)]


def known(stage):
    return [plain(trial) for trial in stage.study.get_trials(deepcopy=False)]


def do_something(stage, running, luck):
    """Do one of all the things that happen to a ledger."""
    what = luck.choice(("ask", "ask", "enqueue", "report", "report", "attr", "complete", "prune", "diverge", "lose"))
    if what == "ask" or not running:
        running.append(stage.ask(SPACE) if luck.random() < 0.7 else stage.study.ask(SPACE))
    elif what == "enqueue":
        stage.enqueue({"x": 0.5, "kind": luck.choice(("max", None, True))}, name="ä", role=("a", 1))
    elif what == "report":
        value = luck.choice((0.1 + luck.random(), math.inf, -math.inf, math.nan))
        trial = luck.choice(running)
        trial.report(value, len(stage.study.trials[trial.number].intermediate_values))
    elif what == "attr":
        luck.choice(running).set_user_attr(luck.choice("ab"), luck.choice((1, "é", [0.1, None], {"k": (1, 2)}, 1e-300)))
    else:
        trial = running.pop(luck.randrange(len(running)))
        with stage.at_once():
            stage.report(trial, value=luck.random(), step=99)
            if what == "complete":
                stage.complete(trial, value=luck.random(), metrics={"target/mAP": luck.random()})
            else:
                getattr(stage, what)(trial, reason="why")


@pytest.mark.parametrize("seed", range(2))
def test_what_is_known_is_what_the_tables_hold(url, stage, seed):
    luck, running = random.Random(seed), []
    for step in range(120):
        do_something(stage, running, luck)
        if step % 20 == 19:
            assert known(stage) == in_the_tables(url)
    states = [lineage.state for lineage in stage.lineages()]
    stage.reap()
    assert known(stage) == in_the_tables(url)
    again = Ledger(url).open("study", stage="search")
    assert known(again) == known(stage)
    assert len(again.lineages()) == len(states) == again.num_lineages and again.num_attempts == len(known(again))
    for old, lineage in zip(states, again.lineages(), strict=True):
        assert lineage.state == ("waiting" if old in ("running", "lost") else old)
        assert all(again.lineage_of(trial.number).index == lineage.index for trial in lineage.attempts)


def test_optuna_goes_on_where_this_left_off(url, stage):
    stage.complete(stage.ask(SPACE), value=0.5, metrics={})
    theirs = optuna.load_study(study_name="study", storage=url)
    trial = theirs.ask(SPACE)
    trial.report(0.2, 1)
    theirs.tell(trial, 0.3)
    again = Ledger(url).open("study", stage="search")
    assert known(again) == in_the_tables(url) and [item.last.value for item in again.lineages()] == [0.5, 0.3]
    with pytest.raises(UpdateFinishedTrialError):
        again.study._storage.set_trial_user_attr(again.study.trials[1]._trial_id, "a", 1)


def test_at_once_is_all_or_nothing(url, stage):
    trial = stage.ask(SPACE)
    before = in_the_tables(url)
    with pytest.raises(ZeroDivisionError), stage.at_once():
        stage.complete(trial, value=0.5, metrics={})
        stage.enqueue({"x": 1.0})
        other = stage.ask(SPACE)
        other.report(0.5, 1)
        assert in_the_tables(url) == before, "nothing is written before the end"
        raise ZeroDivisionError
    assert known(stage) == in_the_tables(url) == before
    with pytest.raises(KeyError):
        other.set_user_attr("a", 1)
    stage.complete(trial, value=0.25, metrics={})
    stage.complete(stage.ask(SPACE), value=0.5, metrics={})
    assert known(stage) == in_the_tables(url) and [item.last.value for item in stage.lineages()] == [0.25, 0.5]


def test_after_a_write_that_failed_everything_is_read_again(url, stage):
    trial = stage.ask(SPACE)
    stage.report(trial, value=0.1, step=1)
    broken = [True]

    @sa.event.listens_for(stage.database.engine, "commit")
    def break_once(connection):
        if broken:
            broken.clear()
            raise ConnectionError("the database has gone")

    with pytest.raises(ConnectionError):
        stage.complete(trial, value=0.5, metrics={})
    assert stage.lineages()[0].state == "running" and known(stage) == in_the_tables(url)
    stage.report(trial, value=0.2, step=2)
    with stage.at_once():  # the same trial, now by the id that the tables gave it
        stage.report(trial, value=0.3, step=3)
        stage.complete(trial, value=0.5, metrics={"a": 1.0})
    assert known(stage) == in_the_tables(url)
    assert (stage.lineages()[0].last.value, len(stage.lineages()[0].last.intermediate_values)) == (0.5, 3)


def test_a_trial_that_was_changed_elsewhere_is_not_written_over(url, stage):
    trial = stage.ask(SPACE)
    optuna.load_study(study_name="study", storage=url).tell(trial.number, 0.9)
    with pytest.raises(StorageInternalError, match="trial 0 is not RUNNING in the ledger: it was changed there"):
        stage.complete(trial, value=0.5, metrics={})
    assert stage.lineages()[0].last.value == 0.9


def test_a_part_of_a_long_study(tmp_path):
    stage = Ledger(f"sqlite:///{tmp_path / 'l.db'}").open("study", stage="search")
    luck, values, pruned, lost = random.Random(0), {}, [], []
    with stage.at_once():
        kept = [stage.ask(SPACE).number for _ in range(2)]
        for _ in range(100):
            trial = stage.ask(SPACE)
            ending = luck.random()
            if ending < 0.1:
                stage.lose(trial, reason="x")
                lost.append(trial.number)
            elif ending < 0.2:
                stage.prune(trial, reason="x")
                pruned.append(trial.number)
            else:
                values[trial.number] = round(luck.random(), 1)
                stage.complete(trial, value=values[trial.number], metrics={})
        stage.enqueue({"x": 1.0})
    best = sorted(values, key=lambda number: -values[number])[:BEST]  # of equals the older, as TPE has it
    newest = sorted([*values, *pruned])[-30:]
    with stage.database.part(30):
        shown = [trial.number for trial in stage.study.get_trials(deepcopy=False)]
        complete = stage.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    assert shown == sorted({*kept, 102, *best, *newest, *lost[-30:]}) and len(shown) < 70
    assert [trial.number for trial in complete] == [number for number in shown if number in values]
    with stage.database.part(100):
        assert len(stage.study.get_trials(deepcopy=False)) == 3 + len(values) + len(pruned) + len(lost) == 103
    assert len(stage.study.get_trials(deepcopy=False)) == 103


def cut_once(server, engine, event):
    """End the connection on the server once, after the first statement of a write or when it is to be committed."""
    cuts = []

    @sa.event.listens_for(engine, event)
    def _cut(connection, *_):
        if not cuts:
            cuts.append(True)
            pid = connection.connection.dbapi_connection.info.backend_pid
            with sa.create_engine(server).connect() as other:
                other.execute(sa.text(f"SELECT pg_terminate_backend({pid}, 10000)"))

    return cuts


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_write_whose_connection_breaks_is_made_again(url, stage, caplog):
    stage.enqueue({"x": 1.0})
    cuts = cut_once(url, stage.database.engine, "after_cursor_execute")
    with stage.at_once():
        trial = stage.ask()
        trial.suggest_float("x", 1e-3, 10.0, log=True)
    assert cuts and "what it was to be told is sent again" in caplog.text
    assert known(stage) == in_the_tables(url)
    stage.complete(trial, value=0.5, metrics={"a": 1})
    assert [one["state"] for one in in_the_tables(url)] == [TrialState.COMPLETE]


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_commit_that_breaks_may_have_been_made_and_is_not_made_again(url, stage):
    stage.enqueue({"x": 1.0})
    cuts = cut_once(url, stage.database.engine, "commit")
    with pytest.raises(sa.exc.OperationalError):
        stage.enqueue({"x": 2.0})
    assert cuts and known(stage) == in_the_tables(url) and len(known(stage)) == 1
