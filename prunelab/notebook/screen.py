"""The screen: shows a session's state and calls its verbs; it owns no truth but what is chosen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from types import NoneType
from typing import Any, Literal, get_args

import ipywidgets as ipw

from prunelab.errors import PruneLabError, Stopped, UnknownName
from prunelab.figures.board import Arrange, BoardInfo
from prunelab.ledger import Event
from prunelab.notebook import text
from prunelab.notebook.aside import Aside
from prunelab.notebook.choice import Choice
from prunelab.notebook.folds import FIGURE, NAMES, folds
from prunelab.notebook.form import form, line, reason, warnings
from prunelab.notebook.pace import Pace
from prunelab.notebook.panel import Panel
from prunelab.notebook.static import picture, svg
from prunelab.notebook.view import Busy, View
from prunelab.notebook.worker import worker_of
from prunelab.values import Ended, Importance, PathPoint, Progress, Rung

Look = Literal["auto", "light", "dark"]
SCREEN = "prunelab-screen"

_open: list[Screen] = []  # what `show` made and nobody closed


class Screen(ipw.VBox):
    """A session as Jupyter shows it. `press` is what its buttons do.

    Verbs called from code run at once in the caller; a click only queues its verb for the
    session's worker thread, so a screen never makes the kernel wait. The parts are HTML, made
    anew from the state and sent where they differ; the figure, which is large, is made when a
    page says that it shows the rest.
    """

    def __init__(self, session: Any, arrange: Arrange = "grid", theme: Look = "auto") -> None:
        self._endings: list[Callable[[], object]] = []  # first: a widget half made is closed too
        for name, given, known in (
            ("arrange", arrange, get_args(Arrange)),
            ("theme", theme, get_args(Look)),
        ):
            if given not in known:
                raise UnknownName(name, given, known)
        self.session = session
        self.live: Any = None  # a Live, once a page shows the screen
        self.look = arrange, theme
        self._arrange: Arrange = arrange
        self._drawn = False  # whether a page has drawn the figure
        self._ui = threading.RLock()  # verbs, clicks and the browser speak on several threads
        self._worker = worker_of(session)
        self._aside = Aside(session, self._worker)
        self._endings.append(self._aside.cancel)
        self._at_work: list[str] = []
        self._busy: Busy | None = None
        self._error = ""
        self._here = False  # whether a page shows the screen: only then is anything done aside
        self._trial: tuple[Any, Any] | None = (
            None  # what was tried, how it does
        )
        self._trying = False
        self._pace = Pace()
        self._opened: set[str] = set()
        self.choice = Choice(session)
        self.head = Panel(("warnings", "form", "picture"), self._told, first=True)
        self.below = Panel((*NAMES, "state"), self._told)
        self._endings += [self.head.close, self.below.close]
        super().__init__([self.head, self.below])
        for name in (SCREEN, f"prunelab-{theme}", f"prunelab-{arrange}"):
            self.add_class(name)
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
        elif verb in text.VERBS:
            with self._ui:
                if self._at_work:
                    return  # a second click that was on its way when the first had begun
                self._begin(verb)
            self._worker.submit(partial(self._perform, verb))

    def _begin(self, verb: str) -> None:
        with self._ui:
            self._at_work.append(verb)
            self._aside.cancel()
            self._error = ""
            self._refresh()

    def _perform(self, verb: str, stopped: bool = False) -> None:
        trouble = ""
        try:
            if not stopped:
                self.choice.call(verb)
        except Stopped:
            pass
        except Exception as error:
            trouble = text.trouble(error, isinstance(error, PruneLabError))
        finally:
            with self._ui:
                self._at_work.remove(verb)
                self._error = trouble
                self._rest()

    def _stop(self, keep: bool = False) -> None:
        self._worker.stop()
        self.session.stop(keep=keep)
        with self._ui:
            if self._busy:
                self._busy = Busy(self._busy.done, text.STOPPING)
                self._refresh()

    # ------------------------------------------------------------ what the session tells

    def _receive(self, told: object) -> None:
        """Show an Event, evidence or Progress; a screen that fails must not fail the verb."""
        if isinstance(told, Progress) and self._trying:
            return  # of what is done aside; whoever waits for it to give way may hold the lock
        try:
            with self._ui:
                match told:
                    case Event():
                        self.choice.follow(told)
                        self._rest()
                    case Importance() | Rung() | PathPoint():
                        self.choice.seen.append(told)
                        if self._pace.due() and told.group in self.choice.layers:
                            self._draw(self.choice.info(told.group))
                    case Progress():
                        self._progress(told)
                    case Ended() if self._outdated():
                        self._rest()
        except Exception as error:
            self._error = text.BROKEN.format(text.trouble(error, False))
            self.head.show(form=form(self._view()))

    def _outdated(self) -> bool:
        """Whether work shows as under way that has ended, or another method than there is."""
        return bool(self.choice.seen or self._busy or self._method != self.session.method)

    def _rest(self) -> None:
        """Show the state as it is: nothing is under way any more."""
        self.choice.seen.clear()
        self._busy = None
        self._refresh()
        if self.live:
            self.live.settle()
        self._go_on()

    # ------------------------------------------------------------ what is done aside

    def _go_on(self) -> None:
        """Let the worker measure, or try what is chosen, once the person has rested."""
        if not self._here or self._at_work or self.session.busy:
            return
        move, at_hand = self.choice.move, self.session.evidence
        if at_hand is None or at_hand.stale:
            job, done = partial(self.session.measure, aside=True), self._measured
        elif move is not None and self._tried_before(move) is None:
            job = partial(self.session.trial, dict(move.drop), aside=True)
            done = partial(self._tried, (move.fingerprint, move.drop))
        else:
            return
        self._aside.after_rest(job, done, self._try)

    def _try(self) -> None:
        with self._ui:
            self._trying = True
            self._refresh()

    def _measured(self, result: Any) -> None:
        with self._ui:
            self._trying = False
            self._refresh()
            if not isinstance(result, (Exception, NoneType)):
                self._go_on()

    def _tried_before(self, move: Any) -> Any:
        """How `move` does, if it was tried last; else None."""
        same = move is not None and self._trial and self._trial[0] == (move.fingerprint, move.drop)
        return self._trial[1] if same else None

    def _tried(self, what: Any, result: Any) -> None:
        with self._ui:
            self._trying = False
            if not isinstance(result, (Exception, NoneType)):
                self._trial = what, result
            self._refresh()

    def _progress(self, progress: Progress) -> None:
        elapsed = self._pace.elapsed(progress)
        if self._pace.due():
            rest = text.remaining(progress.done, progress.total, elapsed)
            self._busy = Busy(progress.done / max(progress.total, 1), f"{progress.what}: {rest}")
            self.head.show(form=form(self._view()))

    # ------------------------------------------------------------ what the page tells

    def _told(self, do: str, arg: Any, value: Any, live: bool) -> None:
        """Deal with what a person does on the page, or with what the page does."""
        match do:
            case "press":
                self._click(str(arg))
            case "keep":
                self._stop(keep=True)
            case "here":
                self._shown()
            case "figure":
                self._drawn = True
            case "narrow":
                self._resize(bool(value))
            case "unfold":
                self._unfold(str(arg), bool(value))
            case _:
                self._choose(lambda: self.choice.change(do, arg, value, live))

    def _unfold(self, name: str, opened: bool) -> None:
        with self._ui:
            (self._opened.add if opened else self._opened.discard)(name)
            if name == FIGURE:
                (self.add_class if opened else self.remove_class)("prunelab-whole")
            self._refresh()

    def _choose(self, change: Callable[[], None]) -> None:
        """Change what is chosen; show what it would do, or why it cannot be."""
        with self._ui:
            self._error = ""
            try:
                change()
            except Exception as error:
                self._error = text.trouble(error, isinstance(error, PruneLabError))
            self._refresh()
            self._go_on()

    def _shown(self) -> None:
        """A page shows the screen: it wants a picture until it has the figure, and the figure."""
        with self._ui:
            self._here, self._drawn = True, False
            self.head.show(picture=picture(self._info()))
            if self.live is None:
                threading.Thread(target=self._animate, name="prunelab-figure", daemon=True).start()

    def _animate(self) -> None:
        """Make the figure, or say why it cannot be."""
        with self._ui:
            if self.live is None and self._endings:
                try:
                    self.make_figure()
                except Exception as error:
                    self._error = text.NO_FIGURE.format(text.trouble(error, False))
                    self._refresh()

    def make_figure(self) -> None:
        """Put the interactive figure in its place; plotly is imported only now."""
        from prunelab.notebook.live import Live

        self.live = Live(self._info(), self._arrange, "dark" if self.look[1] == "dark" else "light")
        self.live.on_click("importance", lambda unit: self._told("flip", None, unit, False))
        self.live.on_click("widths", lambda name: self._told("group", name, None, False))
        self._endings.append(self.live.leave)
        self.children = (self.head, self.live.widget, self.below)
        self._go_on()

    def _resize(self, narrow: bool) -> None:
        with self._ui:
            self.remove_class(f"prunelab-{self._arrange}")
            self._arrange = "stack" if narrow else self.look[0]
            self.add_class(f"prunelab-{self._arrange}")
            if self.live:
                self.live.rearrange(self._arrange)
                self.live.settle()

    # ------------------------------------------------------------ showing

    def _info(self) -> BoardInfo:
        return self._view().info

    def _view(self) -> View:
        at_work = tuple(self._at_work) or ((self.session.busy,) if self._busy else ())
        move = self.choice.move
        return self.choice.view(
            at_work=tuple(filter(None, at_work)),
            busy=self._busy,
            error=self._error,
            opened=frozenset(self._opened),
            trial=self._tried_before(move),
            trying=self._trying and move is not None,
        )

    def _refresh(self) -> None:
        """Make every part from the state; what does not change is not sent."""
        view = self._view()
        self._method = view.method
        self.head.show(warnings=warnings(), form=form(view))
        self.below.show(**folds(view, list(self.session.ledger)), state=line(view))
        self._draw(view.info)

    def _draw(self, info: BoardInfo) -> None:
        if self.live:
            self.live.draw(info)
        if not self._drawn:
            self.head.show(picture=picture(info))

    def close(self) -> None:
        """Take the screen off the page and off the session."""
        for end in self._endings:
            end()
        self._endings.clear()
        if self in _open:
            _open.remove(self)
        super().close()

    def __repr__(self) -> str:
        return f"Screen({self.session.state.line()})"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The widget, and for pages that run none the same line and picture every time."""
        bundle = dict(super()._repr_mimebundle_(**kwargs))
        view = self._view()
        bundle["text/plain"] = repr(self)
        bundle["image/svg+xml"] = svg(view.info, view.state.line(), reason(view))
        return bundle


def show(session: Any, arrange: Arrange = "grid", theme: Look = "auto") -> Screen:
    """A screen for `session`; a notebook cell that ends with it shows it.

    `arrange` "stack" puts the panels under each other, as a screen below 700 px always does.
    `theme` "auto" follows JupyterLab's. A cell that is run again shows the screen that is there.
    """
    for screen in _open:
        if screen.session is session and screen.look == (arrange, theme):
            return screen
    made = Screen(session, arrange, theme)
    _open.append(made)
    return made
