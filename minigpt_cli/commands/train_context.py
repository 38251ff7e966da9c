"""What the runs of one command share, and what a training is to the commands that start it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minigpt_cli.commands.config_sources import Resolved
from minigpt_cli.commands.init_from import Origin, explained_characters
from minigpt_cli.config import DataConfig
from minigpt_cli.display import console
from minigpt_cli.display.group_screen import Standings
from minigpt_cli.display.reading import reading_report
from minigpt_cli.events import Event, Stopped, StopReason
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore

if TYPE_CHECKING:
    from minigpt_cli.data.dataset import Dataset
    from minigpt_cli.training.distributed import World
    from minigpt_cli.training.machine import Machine


@dataclass(frozen=True)
class Context:
    """What all runs of one command share."""

    store: RunStore
    world: World | None = None  # the processes that train together; None: only this one
    origin: Origin | None = None  # the start weights
    json: bool = False  # print each event as a line on stdout
    quiet: bool = False  # print nothing
    verify_data: bool = False  # hash the token files, whenever they were hashed last
    log: tuple[str, ...] = ()  # trackers
    standings: Standings | None = None  # of the run's group, for the screen
    watch: Callable[[Event], StopReason | None] | None = None  # called with every event; a returned reason stops the run
    grouped: bool = False  # the runs are compared
    size: int = 0  # parameters that a plan is to have; 0: as many as are best
    datasets: dict[DataConfig, Dataset] = field(default_factory=dict)  # the last dataset that was read
    said: set[str] = field(default_factory=set)  # of the texts: with another tokenizer it is still the same text
    machines: dict[str, Machine] = field(default_factory=dict)  # measured speeds, by the settings of the computation

    def dataset(self, config: DataConfig, *, again: bool = False) -> Dataset:
        """The prepared data, with a progress bar while it is made; consecutive runs on the same data share it. Where a run is
        resumed (`again`), what the preparation did is not shown a second time."""
        if config not in self.datasets:
            from minigpt_cli.commands.tokenize import prepared_data

            self.datasets.clear()  # a search over data settings would keep too many files open
            with explained_characters(self.origin):
                dataset = prepared_data(config, verify=self.verify_data, quiet=self.json or self.quiet)
            for notice in () if self.json or self.quiet else (*(() if again else dataset.notices), *reading_report(dataset)):
                if notice not in self.said:
                    console.notice(notice)
                self.said.add(notice)
            self.datasets[config] = dataset
        return self.datasets[config]

    def asked_dataset(self, wanted: Resolved) -> Dataset:
        """The same for a new run. Raises UsageError where its source is token files that were made with other settings."""
        from minigpt_cli.data.encoding import check_prepared

        check_prepared(wanted.config.data, wanted.typed)
        return self.dataset(wanted.config.data)

    def budget_begins(self) -> float | None:
        """When the time budget of a run that is started now begins, by time.perf_counter; None: with its first step, since the first run
        of a group also loads and measures what the others use."""
        return None if self.grouped else time.perf_counter()

    def processes(self) -> World:
        """The processes that train together."""
        from minigpt_cli.training.distributed import World

        return self.world or World()


@dataclass(frozen=True)
class Outcome:
    """The result of a training."""

    run: Run
    stopped: Stopped
    signal_number: int | None


Training = Generator[Event, None, Outcome]
"""A training that goes on as its events are read. Closed before its end, it keeps the run's last save."""


def outcome_of(training: Training) -> Outcome:
    """Train to the end."""
    while True:
        try:
            next(training)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome
