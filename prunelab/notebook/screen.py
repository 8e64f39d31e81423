"""The screen: shows a session's state and calls its verbs; it owns no truth but what is chosen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import ipywidgets as ipw

from prunelab.errors import PruneLabError, Stopped, UnknownName
from prunelab.figures.board import Arrange, BoardInfo, board_info
from prunelab.ledger import Event, State
from prunelab.notebook import text
from prunelab.notebook.controls import Controls, enabled, said
from prunelab.notebook.draft import Draft
from prunelab.notebook.keys import SCREEN, Keys
from prunelab.notebook.live import Live
from prunelab.notebook.pace import Pace
from prunelab.notebook.parameters import Parameters, foreseen
from prunelab.notebook.static import svg
from prunelab.notebook.worker import worker_of
from prunelab.values import Ended, Importance, Progress, Rung
from prunelab.words import history

Look = Literal["auto", "light", "dark"]


class Screen(ipw.VBox):
    """A session as Jupyter shows it. `press` is what its buttons do.

    Verbs called from code run at once in the caller; a click only queues its verb for the
    session's worker thread, so a screen never makes the kernel wait.
    """

    def __init__(
        self,
        session: Any,
        arrange: Arrange = "grid",
        theme: Look = "auto",
    ) -> None:
        self._endings: list[Callable[[], object]] = []  # first: a widget half made is closed too
        for name, given, known in (
            ("arrange", arrange, get_args(Arrange)),
            ("theme", theme, get_args(Look)),
        ):
            if given not in known:
                raise UnknownName(name, given, known)
        self.session = session
        self._arrange: Arrange = arrange
        self._ui = threading.RLock()  # verbs, clicks and the browser speak on several threads
        self._worker = worker_of(session)
        self._at_work: list[str] = []
        self._seen: list[Importance | Rung] = []  # of the search under way
        self._pace = Pace()
        self._quiet = False  # whether the boxes change because the screen sets them
        self._last: Event | None = next(reversed(list(session.ledger)), None)
        self.draft = Draft(session)
        self.draft.follow(session.state.pending)
        groups = [group for group in session.graph.groups if group.prunable]
        self._layers = {group.name: tuple(group.producers) for group in groups}
        self.group = next(iter(self._layers))
        self.controls = Controls()
        self.parameters = Parameters(self._asked)
        self.live = Live(self._info(), arrange, "dark" if theme == "dark" else "light")
        self._endings.append(self.live.widget.close)
        narrow = Keys()
        above = (*self.controls.rows, self.parameters.fold)
        super().__init__([*above, self.live.widget, *self.controls.below, narrow])
        self.layout.width = "100%"
        self.add_class(SCREEN)
        self.add_class(f"prunelab-{theme}")
        self.add_class(f"prunelab-{arrange}")
        self._connect(narrow)
        self._choose_group(session.state)
        self._refresh()
        self._endings.append(session.listen(self._receive))

    # ------------------------------------------------------------ verbs

    def press(self, verb: str) -> None:
        """Do what the button `verb` does, to the end; trouble shows as a red line."""
        if verb not in text.VERBS:
            raise UnknownName("button", verb, text.VERBS)
        if verb == "stop":
            self._stop()
        else:
            self._begin(verb)
            self._perform(verb)

    def _click(self, verb: str) -> None:
        """What a real click does: queue the verb and return; Stop passes the queue."""
        if verb == "stop":
            self._stop()
        else:
            self._begin(verb)
            self._worker.submit(partial(self._perform, verb))

    def _begin(self, verb: str) -> None:
        with self._ui:
            self._at_work.append(verb)
            self.controls.error.value = ""
            self._refresh()

    def _perform(self, verb: str, stopped: bool = False) -> None:
        trouble = ""
        try:
            if not stopped:
                self.controls.call(verb, self.session, self.draft.drop)
        except Stopped:
            pass
        except Exception as error:
            trouble = text.trouble(error, isinstance(error, PruneLabError))
        finally:
            with self._ui:
                self._at_work.remove(verb)
                self.controls.error.value = said(trouble, "error", "alert")
                self._rest()

    def _stop(self) -> None:
        self._worker.stop()
        self.session.stop()
        with self._ui:
            if self._at_work:
                self.controls.work.value = said(text.STOPPING, "work")

    # ------------------------------------------------------------ what the session tells

    def _receive(self, told: object) -> None:
        """Show an Event, evidence or Progress; a screen that fails must not fail the verb."""
        try:
            with self._ui:
                match told:
                    case Event():
                        self._happened(told)
                    case Importance() | Rung():
                        self._saw(told)
                    case Progress():
                        self._progress(told)
                    case Ended():
                        self._ended()
        except Exception as error:
            self.controls.error.value = said(text.trouble(error, False), "error", "alert")

    def _happened(self, event: Event) -> None:
        state = self.session.state
        self._last = event
        self.draft.follow(state.pending)
        self._choose_group(state)
        self._rest()

    def _rest(self) -> None:
        """Show the state as it is: nothing is under way any more."""
        self._seen.clear()
        self.controls.working.layout.display = "none"
        self._refresh()
        self.live.settle()

    def _ended(self) -> None:
        """Nothing is under way any more, even if no event has told what became of it."""
        under_way = self._seen or self.controls.working.layout.display != "none"
        if under_way or self.parameters.shown != self.session.method:
            self._rest()

    def _saw(self, evidence: Importance | Rung) -> None:
        self._seen.append(evidence)
        if evidence.group in self._layers and self._pace.due():
            self.live.draw(self._info(evidence.group))

    def _progress(self, progress: Progress) -> None:
        elapsed = self._pace.elapsed(progress)
        if self._pace.due():
            rest = text.remaining(progress.done, progress.total, elapsed)
            self.controls.bar.value = progress.done / max(progress.total, 1)
            self.controls.work.value = said(f"{progress.what}: {rest}", "work")
            self.controls.working.layout.display = "flex"

    # ------------------------------------------------------------ what the person chooses

    def _connect(self, narrow: Keys) -> None:
        controls = self.controls
        for verb, button in controls.buttons.items():
            button.on_click(lambda _, verb=verb: self._click(verb))
        controls.group.observe(lambda change: self._picked(change["new"]), "value")
        controls.count.observe(lambda change: self._counted(change["new"]), "value")
        controls.units.observe(lambda change: self._typed(change["new"]), "value")
        narrow.observe(self._resized, "narrow")
        self.live.on_click("importance", self._flipped)
        self.live.on_click("widths", self._picked)

    def _resized(self, change: Any) -> None:
        with self._ui:
            self.remove_class(f"prunelab-{self.live.arrange}")
            self.live.rearrange("stack" if change["new"] else self._arrange)
            self.add_class(f"prunelab-{self.live.arrange}")
            self.live.settle()

    def _picked(self, group: str) -> None:
        with self._ui:
            if not self._quiet and group in self._layers:
                self.group = group
                self._refresh()
                self.live.settle()

    def _flipped(self, unit: int) -> None:
        self._choose(lambda: self.draft.flip(self.group, int(unit)))

    def _counted(self, count: int) -> None:
        self._choose(lambda: self.draft.lowest(self.live.drawn.importance, count))

    def _typed(self, words: str) -> None:
        self._choose(lambda: self.draft.choose(self.group, text.parse_units(words)))

    def _choose(self, change: Callable[[], None]) -> None:
        """Change the draft; show what it would do, or why it cannot be."""
        with self._ui:
            if not self._quiet and not self._at_work and self.session.state.pending is not None:
                self._attempt(change)

    def _asked(self, make: Callable[[], Any]) -> None:
        """Let the session propose with the method that `make` gives, or say why it cannot."""
        with self._ui:
            self._attempt(lambda: setattr(self.session, "method", make()))
            self.live.settle()

    def _attempt(self, change: Callable[[], None]) -> None:
        trouble = ""
        try:
            change()
        except Exception as error:
            trouble = text.trouble(error, isinstance(error, PruneLabError))
        self.controls.error.value = said(trouble, "error", "alert")
        self._refresh()

    # ------------------------------------------------------------ showing

    def _choose_group(self, state: State) -> None:
        """Show a group that the proposal touches: the one that loses most, if it is free."""
        touched = state.pending.drop if state.pending else {}
        if touched and self.group not in touched:
            self.group = max(touched, key=lambda name: len(touched[name]))

    def _info(self, group: str | None = None) -> BoardInfo:
        """What to draw of `group` (None: the chosen one), as if the draft were the proposal."""
        state = self.session.state
        if self.draft.move:
            state = replace(state, pending=self.draft.move)
        seen = self._seen or foreseen(state, self.session.method)
        return board_info(state, group or self.group, layers=self._layers, seen=seen)

    def _sentence(self) -> str:
        group = self.session.graph[self.group]
        return text.sentence(self.session.state, self._last, self.draft.move, group)

    def _refresh(self) -> None:
        """Set every widget from the state; what does not change is not sent."""
        state = self.session.state
        controls = self.controls
        for verb, can in enabled(state, bool(self._at_work)).items():
            controls.buttons[verb].disabled = not can
        controls.line.value = said(state.line(), "line", "status")
        controls.sentence.value = said(self._sentence(), "sentence")
        controls.history.value = history(state, list(self.session.ledger))
        controls.adjusting.layout.display = "flex" if state.pending else "none"
        self.parameters.follow(self.session.method, state, bool(self._at_work))
        info = self._info()
        self._quiet = True
        try:
            controls.fill(info, self.draft.drop.get(self.group, ()))
        finally:
            self._quiet = False
        self.live.draw(info)

    def close(self) -> None:
        """Take the screen off the page and off the session."""
        for end in self._endings:
            end()
        self._endings.clear()
        super().close()

    def __repr__(self) -> str:
        return f"Screen({self.session.state.line()})"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The widget, and for pages that run none the same line and picture every time."""
        bundle = dict(super()._repr_mimebundle_(**kwargs))
        bundle["text/plain"] = repr(self)
        bundle["image/svg+xml"] = svg(self._info(), self.session.state.line(), self._sentence())
        return bundle


def show(
    session: Any,
    arrange: Arrange = "grid",
    theme: Look = "auto",
) -> Screen:
    """A screen for `session`; a notebook cell that ends with it shows it.

    `arrange` "stack" puts the panels under each other, as a screen below 700 px always does.
    `theme` "auto" takes the text colour from JupyterLab.
    """
    return Screen(session, arrange, theme)
