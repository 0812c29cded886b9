"""The programs of all threads: each thread that runs steps has a book of its programs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fxoffload.runtime.program.book import ExplainFailure, MakeSchedule, ProgramBook
from fxoffload.runtime.program.calls import Call, StepRun
from fxoffload.schedule import ProgramRecord, Schedule


@dataclass(frozen=True, slots=True)
class GraphRules:
    """How the calls of a graph follow schedules.

    make_schedule, explain: see ProgramBook; a thread uses those of the graph that it runs first.
    is_limited: whether the graph has a budget, so that the safe rule waits for its writes. sizes:
    bytes of its values by name, if it has a budget and they may change from call to call; else
    empty.
    """

    make_schedule: MakeSchedule
    explain: ExplainFailure
    is_limited: bool
    sizes: Mapping[str, int]


class Programs:
    """The books of all threads, and the graphs whose ops follow schedules."""

    def __init__(self) -> None:
        self._graphs: dict[str, GraphRules] = {}
        self._books: dict[int, ProgramBook] = {}

    def add_graph(self, graph: str, rules: GraphRules) -> None:
        """Let the calls of `graph` follow schedules by `rules`."""
        self._graphs[graph] = rules

    def enter_offload(self, graph: str, name: str, device: torch.device) -> Call | None:
        """The call that an offload of the value `name` belongs to; None if it follows no schedule.

        Raises BudgetError as ProgramBook.begin_step.
        """
        known = self._graphs.get(graph)
        if known is None:
            return None
        thread = threading.get_ident()
        book = self._books.get(thread)
        if book is None:
            book = self._books[thread] = ProgramBook(known.make_schedule, known.explain)
        step = book.step
        call = step.calls[-1] if step is not None and step.calls and not step.ended else None
        if call is None or call.graph != graph or call.backward or name in call.entries:
            step = book.begin_step(device, graph)
            call = step.add_call(graph, device, is_limited=known.is_limited, sizes=known.sizes)
        return call

    def note_begin(self, *, declared: bool) -> None:
        """In this thread: see ProgramBook.note_begin."""
        book = self._books.get(threading.get_ident())
        if book is not None:
            book.note_begin(declared=declared)

    def forget(self, graph: str) -> None:
        """In all threads: see ProgramBook.forget."""
        for book in list(self._books.values()):
            book.forget(graph)

    def find_next_schedule(self) -> Schedule | None:
        """See ProgramBook.next_schedule; None where several threads run steps."""
        book = self._books.get(threading.get_ident())
        return None if book is None or len(self._books) > 1 else book.next_schedule

    def find_records(self) -> list[ProgramRecord]:
        """The records of the programs of this thread, the latest first."""
        book = self._books.get(threading.get_ident())
        return [] if book is None else book.records

    def find_running(self) -> list[StepRun]:
        """The steps of all threads that have begun and not ended."""
        steps = (book.step for book in list(self._books.values()))
        return [step for step in steps if step is not None and not step.ended]

    def clear(self) -> None:
        """Stop all steps, and forget all graphs and books."""
        for book in self._books.values():
            if book.step is not None:
                book.step.stop()
        self._graphs.clear()
        self._books.clear()
