"""What is done once the last training of a study is over: judge, promote, close its run, print."""

from __future__ import annotations

import getpass
import json
import logging
import os
import shlex
import urllib.parse
from collections.abc import Mapping
from typing import Any

from mlflow.tracking import MlflowClient

from mmfa.config import canonical_json
from tune import advice, confirm, judging, outcomes, promotion, regret_table, summary, words
from tune.console import Console
from tune.job import EXPORT
from tune.places import first_line, safe_url
from tune.recorder import Recorder
from tune.session import Session

logger = logging.getLogger(__name__)

PROBE_IMAGES = 8
CHAMPION_SEEDS = 5
"""Fresh seeds of either side without which a verdict makes no champion."""
FLUSH_SECONDS = 60.0
"""How long the end of a study waits for MLflow."""


def finish(session: Session, recorder: Recorder, client: MlflowClient, console: Console) -> int:
    """Judge, print the result, promote, and close the study's run; return the exit code."""
    written = recorder.flush(seconds=FLUSH_SECONDS)
    found = session.outcome()
    more = _more(session, found)
    _count_pictures(session, found)
    verdict = judging.judge(session, found)
    report = summary.Report(session.plan, found, verdict, more, judging.counted(session))
    console.rich.print(summary.table(session.plan, found))
    if verdict is not None:
        console.rich.print(summary.verdict_table(session.plan, verdict))
    for line in summary.sentences(report):
        console.say(line)
    problem = recorder.problem or "MLflow is too slow"
    for refused in recorder.refused:
        console.say(f"Not recorded, and not tried again: {refused}.")
    for note in session.notes():
        console.say(note)
    if written:
        try:
            promoted = _promote(session, recorder, client, found, verdict)
            about = _draw(session, recorder, client, report, promoted, console)
            _close(session, recorder, report, promoted, about)
            recorder.close()
        except Exception as error:  # of MLflow, its database or its object store: no class in common
            session.lease.check()
            logger.debug("what broke", exc_info=True)
            written, problem = False, first_line(error)
    if not written:
        recorder.close(seconds=1)
        console.say(f"Not everything is recorded or promoted yet: {problem}. The results are safe; to try again, type:")
        console.command(session.request.command)
        return 1
    for line in promoted:
        console.say(line)
    _where(session, console, judged=verdict is not None)
    return 0


def _count_pictures(session: Session, found: outcomes.Outcome) -> None:
    from tune import study_pictures  # matplotlib is for the end of a study only

    study_pictures.count(session, found)


def _more(session: Session, found: outcomes.Outcome) -> dict[str, Any]:
    """Return what the search says about itself."""
    if session.plan.study.is_comparison:
        return {}
    folders = {row.name: session.folder_of(row.name) for row in found.search}
    table = regret_table.of(found.search, folders, objective=found.metric) if session.plan.labelled else []
    if table:
        session.count_reading(f"selection regret over {table[-1]['n']} trials; chose nothing")
    return {
        "regret": table,
        "fidelity": advice.fidelity_report(session.plan, found),
        "isolation": advice.isolation(session.plan, found),
        "boundaries": advice.boundaries(session.plan, found.best),
        "vetoed": found.vetoed,
    }


def judged_by(session: Session) -> dict[str, str]:
    """Return the tags that two champions must share to be compared: the data and how it is judged."""
    return {
        "data.fingerprint": canonical_json(session.stores.fingerprints),
        "protocol": judging.fingerprint(session.plan),
    }


def _promote(
    session: Session,
    recorder: Recorder,
    client: MlflowClient,
    found: outcomes.Outcome,
    verdict: Mapping[str, Any] | None,
) -> list[str]:
    """Move ``candidate`` to the best trial's weights and ``champion`` to a setting that BEATS; say what was done."""
    if session.request.promote == "never":
        return ["Nothing was promoted (--promote never)."]
    if session.plan.study.is_comparison:
        return ["Nothing was promoted: a comparison selects nothing."]
    if found.best is None or found.best.value is None:
        return ["Nothing was promoted: no trial has a result."]
    if session.plan.labels == "oracle":
        return ["Nothing was promoted: an oracle study chose by the labels that judge."]
    lines = [_promote_candidate(session, recorder, client, found.best, found.best.value)]
    if verdict is not None and session.request.promote == "champion":
        lines.append(_promote_champion(session, recorder, client, found, verdict))
    return lines


def _model(session: Session) -> str:
    data = session.plan.baseline.data
    return promotion.model_name(data.source, data.target)


def _version(session: Session, recorder: Recorder, name: str, more: Mapping[str, str]) -> promotion.Promoted:
    from mmfa.data.store import open_store

    data = session.plan.baseline.data
    lineage = next(lineage for lineage in session.lineages() if lineage.name == name)
    return promotion.Promoted(
        name=_model(session),
        run_id=recorder.run_of(name),
        export=session.folder_of(name) / EXPORT,
        probe=open_store(session.stores.paths[data.target]).images[:PROBE_IMAGES],
        tags={
            "mmfa.study": session.study_id,
            "mmfa.lineage": name,
            "selection.labels": session.plan.labels,
            "config": session.config_of(lineage).to_json(),
            **judged_by(session),
            **more,
        },
        check=session.lease.check,
    )


def _promote_candidate(
    session: Session, recorder: Recorder, client: MlflowClient, best: outcomes.Row, value: float
) -> str:
    more = {"objective": session.plan.metric, "objective.value": repr(value)}
    return promotion.promote_candidate(client, _version(session, recorder, best.name, more), value=value)


def _promote_champion(
    session: Session,
    recorder: Recorder,
    client: MlflowClient,
    found: outcomes.Outcome,
    verdict: Mapping[str, Any],
) -> str:
    """A champion is made by its verdict alone; its weights are those of the first fresh seed, not of the best one."""
    stays = f"{_model(session)}@{promotion.CHAMPION} was not moved"
    settled = confirm.read(session.registry)
    assert settled is not None
    against = confirm.CHAMPION if settled.champion not in ("", confirm.BASELINE) else confirm.BASELINE
    winners = [one for one in verdict["judgements"] if one["against"] == against and one["word"] == "BEATS"]
    if not winners:
        return (
            f"{stays}: no setting BEATS {'the standing champion' if against == confirm.CHAMPION else 'the baseline'}."
        )
    best = max(winners, key=lambda one: one["contrast"]["delta"])
    if min(best["contrast"]["n_candidate"], best["contrast"]["n_other"]) < CHAMPION_SEEDS:
        return f"{stays}: a champion needs {CHAMPION_SEEDS} fresh seeds or more of both sides."
    first = min(confirm.of_setting(found, best["candidate"]), key=lambda row: row.name)
    contrast = best["contrast"]
    more = {
        "verdict": best["word"],
        "verdict.against": against,
        "verdict.delta": repr(contrast["delta"]),
        "verdict.p_adjusted": repr(best["p_adjusted"]),
        "verdict.n": f"{contrast['n_candidate']} and {contrast['n_other']}",
        "verdict.mean": repr(contrast["mean_candidate"]),
        "verdict.of": str(len([one for one in verdict["judgements"] if one["against"] == against])),
    }
    if best["alignment"] is not None:
        more["verdict.alignment"] = repr(best["alignment"]["delta"])
    return promotion.promote_champion(
        client, _version(session, recorder, first.name, more), challenged=settled.champion_version
    )


def _draw(
    session: Session,
    recorder: Recorder,
    client: MlflowClient,
    report: summary.Report,
    promoted: list[str],
    console: Console,
) -> dict[str, Any]:
    """Write the page and the rows, also onto the study's run; return what they can be made from again.

    A picture that fails must not take a finished study with it: it is told, and can be drawn later.
    """
    from tune import study_pictures
    from tune.report import from_session, writing  # matplotlib is for the end of a study only

    out = session.request.places.out
    pictures = writing.pictures_of(out, session.study_id)
    no_pictures = ""
    try:
        drawn = study_pictures.draw(session, report.outcome, pictures, verdict=report.verdict)
        no_pictures = "" if drawn else "There are none: no two trainings with a result are to be compared."
    except Exception as error:
        session.lease.check()
        logger.debug("what broke", exc_info=True)
        no_pictures = f"They could not be drawn when the study ended ({type(error).__name__}); its command tries again."
        console.say(f"The pictures of the method could not be drawn: {type(error).__name__}: {first_line(error)}.")
    facts = from_session.gather(
        session,
        report.outcome,
        report.verdict,
        regret=report.more.get("regret", []),
        promoted=promoted,
        no_pictures=no_pictures,
    )
    try:
        files = writing.write(facts, out)
    except Exception as error:
        logger.debug("what broke", exc_info=True)
        console.say(f"The report could not be drawn ({type(error).__name__}: {first_line(error)}). Later, try:")
        places = session.request.places
        where = [
            "--out",
            str(places.out),
            "--ledger",
            safe_url(places.ledger),
            "--tracking-uri",
            safe_url(places.tracking),
        ]
        console.command(shlex.join(["mmfa-study", "report", "--study-run", session.study_id, *where]))
    else:
        session.lease.check()
        for file in files:
            client.log_artifact(recorder.study_run, str(file))
        if not no_pictures:
            client.log_artifacts(recorder.study_run, str(pictures), writing.PICTURES)
    return from_session.about(session, facts)


def _close(
    session: Session, recorder: Recorder, report: summary.Report, promoted: list[str], about: dict[str, Any]
) -> None:
    """Close the study's run and write the outcome beside the databases."""
    found, verdict = report.outcome, report.verdict
    record = found.to_json() | {"study": session.study_id, "question": session.plan.study.question} | dict(report.more)
    page = summary.page(
        report,
        study_id=session.study_id,
        command=words.reproducing(session.plan, session.request.command),
        commits=session.registry.study.user_attrs["commits"],
        seconds=session.training_seconds(),
    )
    out = session.request.places.out
    files = {f"{session.study_id}.json": json.dumps(record, indent=1), f"{session.study_id}.txt": page}
    if verdict is not None:
        files[f"{session.study_id}.verdict.json"] = files["verdict.json"] = json.dumps(verdict, indent=1)
    for name, content in files.items():
        temporary = (out / name).with_suffix(".tmp")
        temporary.write_text(content)
        temporary.replace(out / name)
    metrics: dict[str, float] = {}
    if found.best is not None and found.best.value is not None:
        metrics[f"best/{found.metric}"] = found.best.value
    if found.baseline is not None and found.baseline.value is not None:
        metrics[f"baseline/{found.metric}"] = found.baseline.value
    artifacts: dict[str, Any] = {
        "outcome.json": record,
        "result.txt": page,
        "study.json": session.plan.study.model_dump(mode="json"),
        "baseline.json": session.plan.baseline.flatten(),
        "report.json": about,
        "test_label_readings.json": judging.counted(session) | {"readings": session.readings()},
    }
    tags = {"best": found.best.name if found.best else "none", "promotion": " ".join(promoted)}
    if verdict is not None:
        artifacts["verdict.json"] = verdict
        tags |= {f"verdict.{one['candidate']}.{one['baseline']}": one["word"] for one in verdict["judgements"]}
        for one in verdict["judgements"]:
            metrics[f"verdict/{one['candidate']}/{one['baseline']}/delta"] = one["contrast"]["delta"]
    recorder.finish_study(metrics=metrics, tags=tags, artifacts=artifacts)


def _where(session: Session, console: Console, *, judged: bool) -> None:
    where = session.request.places
    more = f"; the verdict as data: {where.out / 'verdict.json'}" if judged else ""
    console.say(f"Result: {where.out / session.study_id}.txt and .json{more}")
    console.say(f"With pictures, in a browser: {where.out / 'report.html'}; every epoch as data: study.parquet")
    if where.tracking.startswith(("http://", "https://")):
        console.say(f"MLflow: {where.tracking}")
    else:
        console.say("To compare the runs in MLflow, type this and open http://127.0.0.1:5000:")
        console.command(
            shlex.join([session.request.python, "-m", "mlflow", "ui", "--backend-store-uri", where.tracking])
        )
    if (tunnel := tunnel_to(where.tracking, os.environ)) is not None:
        console.say("From the machine where you sit, that address is reached through a tunnel, opened there with:")
        console.command(tunnel)


def tunnel_to(tracking: str, environment: Mapping[str, str]) -> str | None:
    """Return the ssh command that makes MLflow reachable from the user's machine; None where he sits at this one.

    Args:
        tracking: The tracking URI; a database is shown by a server on port 5000.
        environment: ``SSH_CONNECTION`` tells this machine's address as the user's machine reaches it.
    """
    words = environment.get("SSH_CONNECTION", "").split()
    url = urllib.parse.urlsplit(tracking if tracking.startswith(("http://", "https://")) else "http://127.0.0.1:5000")
    if len(words) != 4 or url.hostname not in ("127.0.0.1", "localhost"):
        return None
    port = url.port or 80
    return shlex.join(["ssh", "-L", f"{port}:127.0.0.1:{port}", "-p", words[3], f"{getpass.getuser()}@{words[2]}"])
