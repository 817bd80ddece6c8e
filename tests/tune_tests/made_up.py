"""Whole studies without a training: real ledger, lease, recorder and closing, results that are made up."""

import json
import math
import shutil
import zlib

import numpy as np
from mlflow.tracking import MlflowClient

from mmfa.config import canonical_json
from studies.plan import CONFIRM, SEARCH, digest
from studies.resolve import resolve
from studies.spec import parse
from tune import closing, launch, provenance, search
from tune.console import Console
from tune.job import EXPORT, RESULT
from tune.ledger import Ledger
from tune.places import places
from tune.preflight import Stores
from tune.recorder import Recorder
from tune.session import Request, Session

LAMBDAS = """
question = "Do other λ's beat <the paper's> & \\"mine\\"?"
trials = {trials}
start_up = {trials}
{more}
[protocol]
baseline_seeds = {seeds}
confirm_seeds = 3
[fixed]
"optim.num_epochs" = 4
[space."loss.lambda_attr"]
low = 0.01
high = 30.0
log = true
[space."loss.lambda_mdal"]
low = 0.03
high = 30.0
log = true
zero = true
[space."model.pooling"]
choices = ["max", "average"]
"""
ARMS = """
question = "Does the kernel matter?"
trials = 3
[fixed]
"optim.num_epochs" = 4
"data.num_val_ids" = {held_out}
[protocol]
{judge}
[arms.mmfa]
title = "MMFA <b>"
[arms.literal]
set = {{"kernel.scale" = "absolute"}}
[reported."embedded-source to embedded-target"]
mmfa = {{rank1 = 45.3, mAP = 44.7}}
SPGAN = {{mAP = 22.3}}
"""
JUDGE = 'judge = [["mmfa", "literal"]]'
FINGERPRINTS = {"embedded-source": "aaaabbbbcccc", "embedded-target": "ddddeeeeffff"}


def plan_of(text, **kwargs):
    return resolve(parse(text, name="mine", origin="mine.toml"), profile_name="embedded", overrides={}, **kwargs)


def searching(*, trials=6, seeds=2, more="", **kwargs):
    return plan_of(LAMBDAS.format(trials=trials, seeds=seeds, more=more), **kwargs)


def comparing(*, judge=JUDGE, held_out=0, **kwargs):
    return plan_of(ARMS.format(judge=judge, held_out=held_out), **kwargs)


def quality(config):
    """Return a setting's true mAP: best at λ1 = 10, with seed noise on top."""
    flat = config.flatten()
    noise = np.random.default_rng(zlib.crc32(config.to_json().encode())).normal(0, 0.01)
    return 0.45 - 0.05 * abs(math.log10(max(flat["loss.lambda_attr"], 1e-3)) - 1) + noise


def epoch_of(config, number, last, value, *, after_each):
    flat, share = config.flatten(), number / last
    metrics = {"train/loss_identity": 6 - 4 * share, "train/loss_attribute": 0.7 - 0.1 * share}
    metrics |= {"train/loss_total": 7 - 4 * share, "train/seconds": 1.5 + share, "train/learning_rate": 0.01}
    if flat["data.use_target"]:
        alive = 1e-6 if flat["kernel.scale"] == "absolute" else 0.6
        metrics |= {"train/loss_aal": 0.01 * share, "train/loss_mdal": 0.02, "mmd/kernel_liveness": alive}
        metrics |= {"mmd/plateau": float(alive < 0.01), "mmd/median_d2": 480.0}
    acting = flat["data.use_target"] and flat["kernel.scale"] != "absolute"  # a dead kernel has no gradient at all
    metrics |= {"grad_share/attr": 0.1 / share, "grad_share/mdal": 0.02 * flat["loss.lambda_mdal"] * acting}
    if after_each:
        metrics["target_val/mAP"] = value * (1 - 0.6 * (1 - share))
    return {"epoch": number, "num_epochs": last, "ended_at": 1_700_000_000.25 + number, "metrics": metrics}


def record_of(name, config, plan, ends):
    """Return what a worker would have left: the record of ``result.json``."""
    last, value = config.optim.num_epochs, quality(config)
    outcome = ends.get(name, "complete")
    epochs = {"complete": last, "pruned": 2, "diverged": 1}[outcome]
    after_each = config.data.num_val_ids > 0 and plan.labelled
    history = [epoch_of(config, e, last, value, after_each=after_each) for e in range(1, epochs + 1)]
    if outcome == "diverged":
        history[0]["metrics"]["train/loss_total"] = math.inf
    metrics = dict(history[-1]["metrics"]) if outcome == "complete" else {}
    test = None
    if outcome == "complete":
        metrics |= {"source_val/mAP": 0.6, "probe/effective_rank": 30.0, "probe/finite": 1.0}
        metrics |= {"cluster/silhouette": value / 10, "pseudo/xcam_mAP": value / 2, "attributes/information": 0.1}
    if outcome == "complete" and plan.labelled:
        cmc = [min(1.0, value + 0.05 + 0.01 * rank) for rank in range(50)]
        metrics |= {"target/mAP": value - 0.02, "target/rank1": cmc[0], "target/rank5": cmc[4], "target/rank10": cmc[9]}
        test = {"retrieval": {"target": {"mAP": value - 0.02, "cmc": cmc}}, "attributes": {}}
    return {
        "name": name, "outcome": outcome, "reason": "" if outcome == "complete" else f"made up: {outcome} <here>",
        "config": config.flatten(), "history": history, "metrics": metrics, "test": test, "test_seconds": 0.75,
        "attempt": 1, "started_at": 1_700_000_000.0, "ended_at": 1_700_000_100.5, "notes": [], "pid": 1, "threads": 1,
    }  # fmt: skip


class MadeUp:
    """A study whose driver has run to its end, or stopped before it.

    Args:
        out: Its ``--out``.
        plan: What to run.
        ends: Lineages that do not complete: ``pruned`` or ``diverged``, by name.
        until: How many trainings are run; all of them by default.
        export: Folder of an exported model, which every training is said to have left; none by default.
        paths: Image stores by name, for what looks at images at the end.
        promote: As ``--promote``.
        command: What is said to have been typed.
    """

    def __init__(self, out, plan, *, ends=None, until=None, export=None, paths=None, promote="never",
                 command="mmfa-study --study mine.toml"):  # fmt: skip
        self.out, self.plan, self.ends, self.left = out, plan, ends or {}, math.inf if until is None else until
        self.export = export
        where = places(out=out, storage=None, ledger=None, tracking=None, cache_dir=out / "cache", data_root=None)
        out.mkdir(parents=True, exist_ok=True)
        identity = plan.identity(fingerprints=FINGERPRINTS)
        self.study_id = f"mine-{digest(identity)}"
        ledger = Ledger(where.ledger)
        self.lease = ledger.lease(self.study_id, seconds=30)
        registry = ledger.open(self.study_id, stage=SEARCH)
        ledger.register(registry, identity=identity)
        ledger.register_number(registry, "trials", plan.trials, asked=False)
        if plan.labelled and not plan.study.is_comparison:
            ledger.register_number(registry, "confirm_seeds", plan.study.protocol.confirm_seeds, asked=False)
        registry.study.set_user_attr("commits", ["0123456789ab"])
        names = [*(["controls"] if plan.controls else []), *(arm.name for arm in plan.arms)]
        names += [CONFIRM] if plan.judges else []
        stages = tuple(registry if name == SEARCH else ledger.open(self.study_id, stage=name) for name in names)
        search.prepare(plan, stages)
        request = Request(
            plan=plan, places=where, trials_asked=False, cpus_per_trial=1, trials_per_gpu=1, address=None,
            promote=promote, lease_seconds=30, command=command, python="python",
        )  # fmt: skip
        self.session = Session(
            request=request, plan=plan, study_id=self.study_id, stores=Stores(paths or {}, FINGERPRINTS),
            lease=self.lease, fence=None, ledger=ledger, registry=registry, stages=stages,
            scratch=where.cache_dir / "trials",
        )  # fmt: skip

    def run(self):
        """Drive it; return the study's exit code, or None where it stopped before its end."""
        client = MlflowClient(self.session.request.places.tracking)
        found = client.get_experiment_by_name("pair")
        experiment = found.experiment_id if found else client.create_experiment("pair", (self.out / "ml").as_uri())
        tags = {
            "question": self.plan.study.question,
            "data.fingerprint": canonical_json(FINGERPRINTS),
            "objective": self.plan.metric,
            **provenance.tags(),
        }
        recorder = Recorder(
            client, experiment_id=experiment, study_id=self.study_id, tags=tags, folder_of=self.session.folder_of,
            check=self.lease.check, objective=self.plan.metric,
        )  # fmt: skip
        recorder.open(name=self.study_id, params={"study": "mine"}, note="a note")
        try:
            for phase in self.session.phases:
                launch._settle(self.session, client, Console(self.plan))
                for stage in phase:
                    self._train(stage, recorder)
            if self.session.left():
                recorder.close(interrupted=True)
                return None
            return closing.finish(self.session, recorder, client, Console(self.plan))
        finally:
            self.lease.release()

    def _train(self, stage, recorder):
        while stage.num_waiting and self.left > 0:
            self.left -= 1
            trial = stage.ask()
            if stage.stage not in search.FIXED:
                search.suggest(trial, self.plan, self.plan.arm(stage.stage))
            lineage = stage.lineage_of(trial.number)
            config = search.config_of(self.plan, lineage)
            recorder.trial_started(lineage, config)
            if self.ends.get(lineage.name) == "running":
                continue
            record = record_of(lineage.name, config, self.plan, self.ends)
            folder = self.session.folder_of(lineage.name)
            folder.mkdir(parents=True)
            (folder / RESULT).write_text(json.dumps(record))
            if self.export is not None:
                shutil.copytree(self.export, folder / EXPORT)
            self._close(stage, lineage, trial, record)
            recorder.trial_finished(lineage.name, record["outcome"], self.session.record_of(lineage.name))

    def _close(self, stage, lineage, trial, record):
        for report in record["history"]:
            if self.plan.metric in report["metrics"]:
                stage.report(trial, value=report["metrics"][self.plan.metric], step=report["epoch"])
        if record["outcome"] == "diverged":
            stage.diverge(trial, reason=record["reason"])
        elif record["outcome"] == "pruned":
            stage.prune(trial, reason=record["reason"])
        else:
            metrics = record["metrics"]
            unlabelled = {"label_free/score": 10 * metrics["cluster/silhouette"]}
            value = (metrics | unlabelled)[self.plan.metric if stage.stage != "controls" or self.plan.labelled
                                           else "source_val/mAP"]  # fmt: skip
            stage.complete(trial, value=value, metrics=metrics)
