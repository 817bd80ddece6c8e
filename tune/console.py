"""What a person sees: progress bars, the live table, the result."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import rich.box
from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mmfa.config import TrialConfig
from studies.plan import SEARCH, Plan
from tune import doctor
from tune.ledger import Lineage
from tune.wording import duration, percent, short, symbol

STYLES = {"running": "cyan", "complete": "green", "diverged": "red", "lost": "yellow", "pruned": "magenta"}
LOSSES = (("total", "L"), ("identity", "id"), ("attribute", "attr"), ("aal", "aal"), ("mdal", "mdal"))
MEASURE = 1000
"""Columns that are enough for any table."""


@dataclass
class _Trial:
    """A line of the live table."""

    name: str
    shown: list[str]
    num_epochs: int
    state: str = "running"
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    aligns: bool = False
    warned: bool = False


class Console:
    """Standard output of the command: a live table on a terminal, plain lines elsewhere.

    Args:
        plan: The plan, for the columns and the number of trials.
        width: Width in columns; a terminal's own where it is left out.
    """

    def __init__(self, plan: Plan, *, width: int | None = None) -> None:
        self.rich = RichConsole(width=width, highlight=False)
        self._plan = plan
        self._trials: dict[str, _Trial] = {}
        self._ended: dict[str, str] = {}
        self._workers = 1
        self._problem = ""
        self._lock = threading.Lock()
        self._live: Live | None = None

    def follow(self, plan: Plan) -> None:
        """Go by the plan as the ledger has it: a study may have grown before."""
        self._plan = plan

    def say(self, text: str) -> None:
        """Print a line."""
        self.rich.print(Text(text), soft_wrap=not self.rich.is_terminal)

    def command(self, line: str) -> None:
        """Print a command to be copied: on one line, however long."""
        self.rich.print(Text(f"  {line}"), soft_wrap=True)

    # Data.

    @contextmanager
    def bars(self) -> Iterator[Any]:
        """Yield a progress function ``(what, done, total)`` that draws a bar per task."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.rich, disable=not self.rich.is_terminal) as progress:
            tasks: dict[str, Any] = {}
            lock = threading.Lock()

            def advance(what: str, done: int, total: int) -> None:
                with lock:
                    if what not in tasks:
                        tasks[what] = progress.add_task(what, total=total)
                        if not self.rich.is_terminal:
                            self.say(f"{what}: {total} …")
                    progress.update(tasks[what], completed=done, total=total)

            yield advance

    # Trials.

    @contextmanager
    def live(self, *, workers: int, finished: dict[str, str]) -> Iterator[None]:
        """Show the table while trials run.

        Args:
            workers: Trials that run at once.
            finished: State by name of lineages that were over before.
        """
        self._workers, self._ended = workers, dict(finished)
        if not self.rich.is_terminal:
            yield
            return
        with Live(get_renderable=self._table, console=self.rich, refresh_per_second=1, transient=False) as self._live:
            yield
        self._live = None

    def trial_started(self, lineage: Lineage, config: TrialConfig) -> None:
        """Add a line."""
        shown = [short(value) for value in self._plan.labels_of(config)]
        with self._lock:
            aligns = doctor.aligns(config.flatten())
            self._trials[lineage.name] = _Trial(lineage.name, shown, config.optim.num_epochs, aligns=aligns)
        if self._live is None:
            pairs = " ".join(f"{symbol(n)}={v}" for n, v in zip(self._plan.shown, shown, strict=True))
            self.say(f"{lineage.name} starts: {pairs}")

    def trial_epoch(self, name: str, report: dict[str, Any]) -> None:
        """Update a line."""
        with self._lock:
            trial = self._trials[name]
            trial.epoch, trial.metrics = report["epoch"], report["metrics"]
            trial.seconds = report["metrics"].get("train/seconds", trial.seconds)
            dead = trial.aligns and trial.epoch == 1 and trial.metrics.get("mmd/plateau")
            told = doctor.warning(name, trial.metrics["mmd/kernel_liveness"]) if dead and not trial.warned else ""
            trial.warned = trial.warned or bool(told)
        if told:
            self.say(told)

    def trial_finished(self, name: str, state: str, record: dict[str, Any]) -> None:
        """Close a line."""
        with self._lock:
            trial = self._trials[name]
            trial.state = state
            self._ended[name] = state
        for note in record.get("notes", []):
            self.say(f"{name}: {note}")
        if self._live is None:
            value = {**trial.metrics, **record.get("metrics", {})}.get(self._plan.metric)
            reason = f": {record['reason']}" if record.get("reason") else ""
            scored = "" if value is None else f", {self._plan.metric} {_score(self._plan, value)}"
            self.say(f"{name} {state}{reason}{scored}, {self._eta()}")

    def _eta(self) -> str:
        """Estimate what is left from the epochs that were timed."""
        with self._lock:
            timed = [trial.seconds for trial in self._trials.values() if trial.seconds]
            total = self._plan.num_trainings
            started = set(self._trials) | set(self._ended)
            left = max(0, total - len(started)) * self._plan.baseline.optim.num_epochs
            left += sum(trial.num_epochs - trial.epoch for trial in self._trials.values() if trial.state == "running")
        if not timed:
            return "time left: not known before the first epoch"
        return f"about {duration(left * sum(timed) / len(timed) / self._workers)} left"

    def _table(self) -> RenderableType:
        with self._lock:
            # Where there is no room the terms of eq. 7 go first, then the parameters: no figure is cut short.
            tables = [self._rows(LOSSES), self._rows(LOSSES[:1]), self._rows(LOSSES[:1], parameters=False)]
            ended = len(self._ended)
        options = self.rich.options.update(width=MEASURE)
        fitting = [one for one in tables if Measurement.get(self.rich, options, one).maximum <= self.rich.width]
        head = Text(
            f"{self._plan.study.name}: {ended} of {max(ended, self._plan.num_trainings)} trainings over, {self._eta()}",
            "bold",
        )
        notes = [Text(self._problem, "yellow")] if self._problem else []
        return Group(head, (fitting or tables[-1:])[0], *notes)

    def _rows(self, losses: Sequence[tuple[str, str]], *, parameters: bool = True) -> Table:
        """Return the trials that fit the height, with some of the losses."""
        table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, expand=False)
        table.add_column("trial", no_wrap=True)
        for name in self._plan.shown if parameters else ():
            table.add_column(symbol(name).replace(".", "\n"), justify="right", no_wrap=True, min_width=5)
        for title in ("epoch", *(title for _, title in losses), self._plan.metric.replace("/", "\n"), "alive"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True)
        for trial in self._shown():
            m = trial.metrics
            values = [f"{m[f'train/loss_{key}']:.3f}" if m else "" for key, _ in losses]
            alive = f"{m['mmd/kernel_liveness']:.2f}" if "mmd/kernel_liveness" in m else "–"
            epoch = f"{trial.epoch}/{trial.num_epochs}"
            state = Text(trial.state, STYLES.get(trial.state, ""))
            name = trial.name.rpartition("/")[2] if self._plan.arms[0].name == SEARCH else trial.name
            score = _score(self._plan, m.get(self._plan.metric))
            table.add_row(name, *(trial.shown if parameters else ()), epoch, *values, score, alive, state)
        return table

    def _shown(self) -> list[_Trial]:
        """Return what fits: all that run, then the newest that ended, in order of start."""
        room = max(self.rich.size.height - 8, 4)
        running = [trial for trial in self._trials.values() if trial.state == "running"]
        ended = [trial for trial in self._trials.values() if trial.state != "running"]
        keep = {trial.name for trial in [*ended[max(0, len(ended) + len(running) - room) :], *running]}
        return [trial for trial in self._trials.values() if trial.name in keep]


def _score(plan: Plan, value: float | None) -> str:
    """Return an objective: percent, but for the one that is measured in standard deviations."""
    if value is None:
        return ""
    return f"{value:+.2f}" if plan.metric == "label_free/score" else f"{percent(value)} %"
