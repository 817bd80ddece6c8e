"""Bad input gets one clear sentence and exit code 2, before anything starts."""

import http.server
import socket
import sqlite3
import threading
import time

import pytest
import services

from tune import cli

GOOD = 'question = "?"\ntrials = 2\n[space."loss.lambda_aal"]\nlow = 0.1\nhigh = 10.0\nlog = true\n'


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run the command line in an empty folder; return its exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--study", "lamdas"], "'lamdas' is not a shipped study; did you mean 'lambdas'? Shipped: "),
        (["--study", "lambdas", "--sed", "1"], "'--sed' is not an option; did you mean '--seed'?"),
        (["--study", "lambdas", "--trials", "0"], "--trials must be 1 or more, but got 0."),
        (["--study", "lambdas", "--trials", "many"], "argument --trials: invalid int value: 'many'"),
        (["--study", "lambdas", "--set", "optim.num_epoch=3"], "did you mean 'optim.num_epochs'?"),
        (
            ["--study", "lambdas", "--set", "optim.num_epochs=three"],
            "optim.num_epochs must be of type int, but got 'three'",
        ),
        (["--study", "lambdas", "--set", "optim.num_epochs=0"], "optim.num_epochs >= 1 must hold, but got 0"),
        (["--study", "lambdas", "--set", "optim.num_epochs"], "--set takes KEY=VALUE"),
        (
            ["--study", "lambdas", "--weights", "a.pth", "--set", "model.weights=b.pth"],
            "--weights and --set model.weights say the same thing; give one of them.",
        ),
        (["--study", "ablation", "--profile", "paper"], "--source market1501 needs --data-root DIR"),
        (["--study", "lambdas", "--set", "loss.lambda_attr=1.0"], "would fix what lambdas.toml searches"),
        (["--study", "lambdas", "--profile", "papr"], "argument --profile: invalid choice: 'papr'"),
        (["--study", "lambdas", "--source", "embeded-source"], "did you mean 'embedded-source'?"),
        (["--study", "lambdas", "--source", "market1501"], "--source market1501 needs --data-root DIR"),
        (["--study", "lambdas", "--data-root", "nowhere"], "--data-root must be a folder that holds the datasets"),
        (["--study", "lambdas", "--cpus-per-trial", "0"], "--cpus-per-trial must be 1 or more, but got 0."),
        (["--study", "lambdas", "--ledger", "nonsense"], "--ledger must be a database URL"),
        (["--study", "lambdas", "--ledger", "mysql://h/d"], "--ledger must be SQLite or PostgreSQL"),
        (["--study", "lambdas", "--ledger", "sqlite://"], "nothing could be resumed from memory"),
        (["--study", "lambdas", "--tracking-uri", "./mlruns"], "--tracking-uri must be a database URL"),
        (
            ["--study", "lambdas", "--ledger", "sqlite:///x.db", "--tracking-uri", "sqlite:///./x.db"],
            "must be two databases",
        ),
        (["reply"], "'reply' is not a command"),
        ([], "--study is missing; shipped studies: "),
    ],
)
def test_bad_input(run, arguments, sentence, tmp_path):
    for more in ([], ["--dry-run"]):
        code, said = run(*arguments, *more)
        assert code == 2
        assert sentence in said and "Traceback" not in said
        assert said.startswith("mmfa-study: ") and said.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing was started"


def test_a_study_that_is_not_text(run, tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00\x01")
    assert run("--study", "binary.toml") == (
        2,
        "mmfa-study: binary.toml: a study must be TOML in UTF-8 text, but this file is not text.\n",
    )


def test_a_data_root_without_the_dataset_names_the_layout(run, study, tmp_path):
    (tmp_path / "data").mkdir()
    code, said = run(
        "--study", study, "--data-root", tmp_path / "data", "--source", "market1501", "--target", "market1501"
    )
    assert code == 2 and "Market-1501-v15.09.15" in said and "bounding_box_train" in said


def test_unwritable_places(run, study, tmp_path, embedded_cache):
    file = tmp_path / "file"
    file.write_text("")
    for option in ("--out", "--storage", "--cache-dir"):
        code, said = run("--study", study, option, file / "inside")
        assert code == 2 and "cannot be written (Not a directory)" in said and option in said
    text = tmp_path / "text.db"
    text.write_text("no database")
    for option in ("--ledger", "--tracking-uri"):
        code, said = run("--study", study, option, f"sqlite:///{text}", "--cache-dir", embedded_cache)
        assert code == 2 and f"{option}: {text} is not an SQLite database" in said


def test_a_tracking_server_that_does_not_answer(run, study, embedded_cache):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    code, said = run("--study", study, "--tracking-uri", f"http://127.0.0.1:{port}", "--cache-dir", embedded_cache)
    assert code == 2 and "does not answer" in said and "Connection refused" in said


def test_a_tracking_server_that_never_answers_is_given_up(run, study, embedded_cache):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        code, said = run("--study", study, "--tracking-uri", address, "--cache-dir", embedded_cache)
    assert code == 2 and "does not answer (timed out)" in said
    assert time.monotonic() - started < 60  # ten seconds of silence, and whatever imports take on a busy machine


def test_a_server_that_refuses_says_how(run, study, embedded_cache):
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(403)

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code, said = run(
        "--study", study, "--tracking-uri", f"http://127.0.0.1:{server.server_port}", "--cache-dir", embedded_cache
    )
    server.shutdown()
    assert code == 2 and "answered 403" in said and "--allowed-hosts" in said


def test_a_ledger_with_foreign_tables_is_refused(run, study, tmp_path, embedded_cache):
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE version_info (something TEXT)")
    code, said = run("--study", study, "--ledger", f"sqlite:///{foreign}", "--cache-dir", embedded_cache)
    assert code == 2 and "foreign.db" in said and "Traceback" not in said


def test_dry_run_touches_nothing_and_says_it_all(run, tmp_path):
    code, said = run("--study", "lambdas", "--dry-run", "--trials", "7", "--set", "optim.num_epochs=6")
    assert code == 0 and not list(tmp_path.iterdir())
    for part in ("7 trials", "source_only, target_bn", "loss.lambda_attr in 0.01 … 30.0, logarithmic (0.1)"):
        assert part in said
    assert "optim.num_epochs = 6 (paper: 25)" in said and "cost: about" in said


def test_list_and_help_read_well(run, capsys):
    code, said = run("--list")
    assert code == 0 and "lambdas       20 trials  Do other loss weights beat the paper's" in said
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    options = (
        "--study --data-root --source --target --profile --trials --trials-per-gpu --cpus-per-trial --address "
        "--storage --tracking-uri --ledger --cache-dir --out --set --seed --promote --dry-run --list"
    )
    assert all(option in text for option in options.split()) and "exit codes" in text


@pytest.mark.parametrize(
    ("option", "url", "way_out"),
    [
        ("--ledger", "postgresql://mmfa:planted@db/ledger", "PGPASSWORD or in ~/.pgpass"),
        ("--tracking-uri", "http://mmfa:planted@mlflow:5000", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("--tracking-uri", "http://planted@mlflow:5000", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("--tracking-uri", "postgresql://mmfa:planted@db/mlflow", "(a database's: PGPASSWORD)"),
        ("--ledger", "postgresql://mmfa:pa/planted@db/ledger", "PGPASSWORD"),
        ("--ledger", "postgresql://mmfa@db/ledger?password=planted", "PGPASSWORD"),
        ("--ledger", "postgresql://mmfa@db/ledger?sslmode=require&sslpassword=planted", "PGPASSWORD"),
        ("--storage", "s3://AKIA:planted@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("--storage", "s3://bucket/x?access_key=AK&secret_key=planted", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_a_password_is_no_part_of_a_command(run, option, url, way_out):
    code, said = run("--study", "smoke", "--dry-run", option, url)
    assert code == 2
    assert f"{option} must not hold a password" in said and way_out in said and "planted" not in said


@pytest.mark.parametrize("where", ["s3://bucket/x?region=eu-west-1", "s3://somebody@bucket/x"])
def test_storage_is_a_bucket_and_a_path(run, where):
    code, said = run("--study", "smoke", "--dry-run", "--storage", where)
    assert code == 2 and "--storage must be a bucket and a path in it" in said and "AWS_DEFAULT_REGION" in said


def test_one_database_by_two_names_is_refused(run):
    urls = ("--ledger", "postgresql://u@localhost/db", "--tracking-uri", "postgresql+psycopg://u@127.0.0.1:5432/db")
    code, said = run("--study", "smoke", "--dry-run", *urls)
    assert code == 2 and "must be two databases" in said


def test_an_address_at_which_nobody_listens_is_refused_at_once(run, tmp_path, embedded_cache):
    started = time.monotonic()
    address = f"127.0.0.1:{services.free_port()}"
    code, said = run(
        "--study", "smoke", "--out", str(tmp_path), "--cache-dir", str(embedded_cache), "--address", address
    )
    assert code == 2 and f"Ray at --address {address} cannot be reached" in said and "leave --address out" in said
    assert time.monotonic() - started < 60
