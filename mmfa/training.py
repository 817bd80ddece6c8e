"""One training of MMFA, epoch by epoch, for whoever iterates over it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import mmfa
from mmfa import checkpoint, compiled
from mmfa.backbone import resolve_weights
from mmfa.checkpoint import Checkpoint
from mmfa.config import TrialConfig
from mmfa.data.batches import Batches
from mmfa.data.records import Ints
from mmfa.data.store import Store
from mmfa.diagnostics import LossLog, grad_shares, kernel_metrics
from mmfa.errors import CheckpointError, ConfigError, DivergedError
from mmfa.evaluate import evaluate, evaluate_test
from mmfa.hardware import Hardware, deterministic
from mmfa.model import MMFA, build
from mmfa.norm import DomainRole
from mmfa.optim import learning_rate, momenta, restore_momenta
from mmfa.ranking import NotFiniteError, RetrievalReport
from mmfa.reports import EpochReport, TestReport
from mmfa.step import Step
from mmfa.trace import Trace, part
from mmfa.usage import Usage

__all__ = ["EpochReport", "Training"]

logger = logging.getLogger(__name__)

HeldOut = Literal["target_val", "source_val"]
_OTHER_BITS = "the epochs to come are not bit-identical to those of one training"


class Training:
    """One training: everything in it follows from the config, the two stores and the hardware.

    On the CPU the same config on the same machine gives bit-identical losses, and so does a training resumed after any
    epoch; on CUDA neither is tested. What the caller does with torch's global generator between epochs changes nothing.

    Args:
        config: the trial.
        source: labelled images, with their official splits.
        target: images whose labels only evaluation reads.
        device: ``auto`` (a GPU where there is one), or a torch device such as ``cpu`` or ``cuda:1``.
        trace: what profiles the first epoch that is trained.

    Raises:
        ConfigError: weights that cannot be had, a device that is not there or cannot do what the config insists on.
        DataError: datasets too small for the batches or for the held-out identities, or held-out queries of which
            none has a match.
    """

    def __init__(
        self, config: TrialConfig, *, source: Store, target: Store, device: str = "auto", trace: Trace | None = None
    ) -> None:
        self.config = config
        self.source, self.target = source, target = [
            dataclasses.replace(store, domain=store.domain.with_split(config.data.split)) for store in (source, target)
        ]
        self.hardware = Hardware.choose(device, config.run)
        if config.run.compile == "on" and not self.hardware.compiled:
            raise ConfigError(
                "run.compile='on' needs a GPU: on a CPU compiling takes most of a minute and gains nothing, but this "
                f"training runs on {self.hardware.device}; set it to 'auto' or 'off'."
            )
        self.trace = trace
        self.history: list[EpochReport] = []
        self._batches = Batches(
            config.data,
            source=source,
            target=target,
            seed=config.run.seed,
            device=self.hardware.device,
            channels_last=self.hardware.channels_last,
        )
        held_out = {"target_val": (target, self._batches.target_domain.rows)}
        held_out["source_val"] = (source, self._batches.source_domain.rows)
        self._held_out = {
            split: (store, rows("val_query"), rows("val_gallery"))
            for split, (store, rows) in held_out.items()
            if len(rows("val_query"))
        }
        if not self.attribute_names and not config.loss.lambda_id:
            raise ConfigError(
                f"{config.data.source} has no attributes and loss.lambda_id is 0, so nothing would be learned; "
                "set loss.lambda_id above 0, or use a source with attributes."
            )
        self.model = self._new_model()
        self._step = Step(self.model, config, self.hardware)
        self._average = self._step.average
        self._usage = Usage(self.hardware.device)

    @property
    def pids(self) -> Ints:
        """Ascending training identities of the source: the classes of the identity head."""
        return self._batches.train_pids

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Columns of the attribute heads."""
        return self._batches.attribute_names

    @property
    def backbone_runs(self) -> str:
        """How the backbone runs, in words: eager or compiled, and why not faster; known once a step has been taken."""
        return self._step.backbone_runs

    @property
    def target_rows(self) -> Ints:
        """Ascending rows of the target's training images, used or not; held-out identities are not among them."""
        return self._batches.target_domain.rows("train")

    @property
    def evaluated_model(self) -> MMFA:
        """The model that is evaluated and exported: the running average where there is one."""
        if self._average is None:
            return self.model
        assert isinstance(self._average.model, MMFA)
        return self._average.model

    def epochs(self) -> Iterator[EpochReport]:
        """Train, and yield the report of each finished epoch; continues after the last one in ``history``.

        Raises:
            DivergedError: a loss, weight, BatchNorm statistic or embedding that is not finite; names epoch and step or
                evaluation.
        """
        try:
            while len(self.history) < self.config.optim.num_epochs:
                with deterministic(self.hardware.device, seed=(self.config.run.seed, len(self.history) + 1)):
                    report = self._epoch(len(self.history))
                before = self.history[-1].backbone_runs if self.history else report.backbone_runs
                if not compiled.same_way(before, report.backbone_runs):  # resumed: a first step alone shows it
                    logger.warning("the backbone ran %s, and now %s: %s", before, report.backbone_runs, _OTHER_BITS)
                self.history.append(report)
                yield report
        finally:
            self._step.close()

    def test(self) -> TestReport:
        """Judge the evaluated model by the target's official test split, after the last epoch and only then.

        Raises:
            ConfigError: epochs are left to train, or the target has no query images.
            DivergedError: embeddings that are not finite.
        """
        done, num_epochs = len(self.history), self.config.optim.num_epochs
        if done < num_epochs:
            raise ConfigError(
                f"the test split is for finished trainings, but {done} of {num_epochs} epochs are done; run the others."
            )
        with _diverged(f"epoch {done}, evaluation of test"):
            return evaluate_test(
                self.evaluated_model,
                self.target,
                config=self.config,
                attribute_names=self.attribute_names,
                hardware=self.hardware,
                pixels=self._batches.pixels["target"],
            )

    def save(self, folder: Path, *, before_commit: Callable[[], None] = checkpoint.nothing) -> Path:
        """Write ``folder/epoch-NNNN``, from which :meth:`resume` continues, and keep the newest two of the folder.

        Args:
            folder: one process at a time writes into it.
            before_commit: called right before the checkpoint appears; what it raises leaves nothing behind.
        """
        assert self.history, "nothing is trained yet"
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"momentum/{name}": value for name, value in momenta(self._step.optimiser, self.model).items()}
        if self._average is not None:
            tensors |= {f"average/{name}": value for name, value in self._average.model.state_dict().items()}
        state = {
            "kind": "training",
            **self._identity(),
            "numerics": self._numerics(),
            "epoch": len(self.history),
            "history": [dataclasses.asdict(report) for report in self.history],
        }
        name = f"epoch-{len(self.history):04d}"
        path = checkpoint.save(folder, name, tensors=tensors, state=state, before_commit=before_commit)
        checkpoint.keep_newest(folder)
        return path

    def resume(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint as if the training had never stopped.

        Another device, precision, memory format or torch than before is allowed, and logged as a warning.

        Raises:
            CheckpointError: it is of another config, other data, other identities or attributes, another version, or
                no training's; the training is as it was before.
        """
        if saved.state.get("kind") != "training":
            raise CheckpointError(
                f"{saved.path} holds an exported model, which has no optimiser; resume from an epoch-NNNN."
            )
        self._refuse_other(saved)
        weights, average, momentum = (
            checkpoint.named(kind, saved.tensors) for kind in ("model", "average", "momentum")
        )
        checkpoint.check_tensors(saved, weights, self.model.state_dict())
        checkpoint.check_tensors(saved, average, {} if self._average is None else self._average.model.state_dict())
        moved = {name: value for name, value in self.model.named_parameters() if name in momentum}
        checkpoint.check_tensors(saved, momentum, moved)
        try:
            history = [EpochReport.from_dict(report) for report in saved.state["history"]]
        except (KeyError, TypeError, ValueError) as error:
            raise checkpoint.other_version(saved, f"history: {error}") from error
        self._warn_of_other_numerics(saved)
        self.model.load_state_dict(weights)
        restore_momenta(self._step.optimiser, self.model, momentum)
        if self._average is not None:
            self._average.model.load_state_dict(average)
        self.history = history

    def export(self, folder: Path, *, before_commit: Callable[[], None] = checkpoint.nothing) -> Path:
        """Write the evaluated model, with its config, identities and attribute names, for ``checkpoint.load_model``.

        Args:
            folder: made or replaced.
            before_commit: called right before the folder appears; what it raises leaves nothing behind.
        """
        state = {"kind": "model", **self._identity(), "epoch": len(self.history)}
        return checkpoint.save(
            folder.parent,
            folder.name,
            tensors=self.evaluated_model.state_dict(),
            state=state,
            before_commit=before_commit,
        )

    def _new_model(self) -> MMFA:
        weights = resolve_weights(self.config.model)
        with deterministic(torch.device("cpu"), seed=(self.config.run.seed, 0)):
            model = build(
                self.config, num_ids=len(self.pids), num_attributes=len(self.attribute_names), weights=weights
            )
        model.to(memory_format=self.hardware.memory_format)
        return model.to(self.hardware.device)

    def _epoch(self, epoch: int) -> EpochReport:
        trace = None if self.trace is None or self.trace.done else self.trace
        with contextlib.nullcontext() if trace is None else trace.epoch(self.hardware.device):
            started = time.perf_counter()
            losses, mmd, shares = self._train(epoch, trace)
            trained = time.perf_counter()
            with contextlib.nullcontext() if trace is None else trace.evaluation():
                retrieval = self._validate(epoch + 1)
        data = self.config.data
        images = self._batches.num_steps * (data.source_batch + (data.target_batch if data.use_target else 0))
        return EpochReport(
            epoch=epoch + 1,
            num_epochs=self.config.optim.num_epochs,
            losses=losses,
            mmd=mmd,
            grad_share=shares,
            retrieval=retrieval,
            learning_rate=self._rate(epoch, self._batches.num_steps - 1),
            seconds=time.perf_counter() - started,
            images_per_second=images / (trained - started),
            ended_at=time.time(),
            gem_p=None if self.evaluated_model.gem_p is None else self.evaluated_model.gem_p.item(),
            backbone_runs=self.backbone_runs,
            system=self._usage.take(),
        )

    def _train(self, epoch: int, trace: Trace | None) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """Take the steps of one epoch; return mean losses and, of the last step, kernel metrics and gradient shares."""
        self.model.train()
        log = LossLog(epoch + 1)
        num_steps = self._batches.num_steps
        mmd: dict[str, float] = {}
        shares: dict[str, float] = {}
        # Closed by us and not by the garbage collector: a prefetch thread stands behind it.
        with contextlib.closing(self._batches.epoch(epoch)) as batches:
            for step in range(num_steps):
                if trace is not None:
                    trace.before_step(step, num_steps)
                with part("data"):
                    batch = next(batches)
                self._step.prepare(batch)
                source, target, terms = self._step.forward(batch)
                if step == num_steps - 1:
                    with part("diagnostics"):
                        pooled = [features.pooled_BD for features in (source, target) if features is not None]
                        shares = grad_shares(terms, pooled, weights=self._step.objective.weights)
                        mmd = {} if target is None else kernel_metrics(source, target, kernel=self.config.kernel)
                self._step.update(terms, rate=self._rate(epoch, step))
                log.add(terms)
                self._usage.look()
        losses = log.means()
        self._check_weights(epoch + 1)
        return losses, mmd, shares

    def _check_weights(self, epoch: int) -> None:
        """Raise DivergedError for what the last step itself did, which the losses cannot show."""
        where = f"epoch {epoch}, step {self._batches.num_steps}"
        if not torch.isfinite(torch.nn.utils.get_total_norm(self.model.parameters())):
            raise DivergedError(f"{where}: the weights are not finite.")
        if not _all_finite(self.model.buffers()):
            raise DivergedError(f"{where}: the BatchNorm statistics are not finite.")
        if self._average is not None and not _all_finite(self._average.model.state_dict().values()):
            raise DivergedError(f"{where}: the averaged model is not finite.")

    def _rate(self, epoch: int, step: int) -> float:
        num_steps = self._batches.num_steps
        return learning_rate(self.config.optim, step=epoch * num_steps + step, steps_per_epoch=num_steps)

    def _validate(self, epoch: int) -> dict[str, RetrievalReport]:
        last = epoch == self.config.optim.num_epochs
        splits: tuple[HeldOut, ...] = ("target_val", "source_val") if last else ("target_val",)
        return {split: self._evaluate(split, epoch=epoch) for split in splits if split in self._held_out}

    def _evaluate(self, split: HeldOut, *, epoch: int) -> RetrievalReport:
        store, query_rows, gallery_rows = self._held_out[split]
        domain: DomainRole = "source" if split == "source_val" else "target"
        with _diverged(f"epoch {epoch}, evaluation of {split}"):
            return evaluate(
                self.evaluated_model,
                store,
                query_rows=query_rows,
                gallery_rows=gallery_rows,
                height=self.config.data.image_height,
                width=self.config.data.image_width,
                hardware=self.hardware,
                domain=domain,
                pixels=self._batches.pixels[domain],
            )

    def _identity(self) -> dict[str, Any]:
        """Return what a checkpoint must have in common with the training that resumes from it, and its versions."""
        return {
            "config": self.config.to_json(),
            "fingerprints": {"source": self.source.fingerprint, "target": self.target.fingerprint},
            "pids": self.pids.tolist(),
            "attribute_names": list(self.attribute_names),
            "versions": {"mmfa": mmfa.__version__, "torch": torch.__version__, "python": platform.python_version()},
        }

    def _numerics(self) -> dict[str, Any]:
        """Return what ``auto`` in the config came to be, and torch: the same config computes other bits with others."""
        return {
            "device": self.hardware.device.type,
            "bf16": self.hardware.bf16,
            "channels_last": self.hardware.channels_last,
            "compiled": self.hardware.compiled,
            "torch": torch.__version__,
        }

    def _warn_of_other_numerics(self, saved: Checkpoint) -> None:
        if differing := checkpoint.differences(saved.state.get("numerics") or {}, self._numerics()):
            logger.warning("%s was trained with another %s: %s", saved.path, ", ".join(differing), _OTHER_BITS)

    def _refuse_other(self, saved: Checkpoint) -> None:
        theirs, ours = saved.state, self._identity()
        try:
            config = dict(json.loads(theirs["config"]))
        except (KeyError, TypeError, ValueError) as error:
            raise checkpoint.other_version(saved, f"config: {error}") from error
        if differing := checkpoint.differences(config, json.loads(ours["config"])):
            raise CheckpointError(
                f"a training resumes from its own config, but {saved.path}, of mmfa {checkpoint.written_by(saved)}, "
                f"differs in {', '.join(differing)}; restore these values or start afresh."
            )
        for key, what in (("fingerprints", "data"), ("pids", "identities"), ("attribute_names", "attributes")):
            if theirs.get(key) != ours[key]:
                raise CheckpointError(
                    f"a training resumes on its own {what}, but those of {saved.path} differ from those given; "
                    "restore the datasets or start afresh."
                )


@contextlib.contextmanager
def _diverged(where: str) -> Iterator[None]:
    """Raise DivergedError in place of the evaluation's own error."""
    try:
        yield
    except NotFiniteError as error:
        raise DivergedError(f"{where}: the features are not finite.") from error


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all floating-point tensors are finite; waits for the device once."""
    finite = [torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()]
    return not finite or bool(torch.stack(finite).all())
