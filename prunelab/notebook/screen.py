"""The screen: shows a session's state and calls its verbs; its only own state is the selection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

from IPython.display import display

from prunelab.errors import InvalidValue, PruneLabError, UnknownName
from prunelab.figures.board import Arrange, BoardInfo
from prunelab.ledger.events import Event
from prunelab.notebook import text
from prunelab.notebook.background import COMPARE, Background
from prunelab.notebook.figure_slot import FigureSlot
from prunelab.notebook.form import form, line, reason, warnings
from prunelab.notebook.root import Root
from prunelab.notebook.sections import FIGURE, NAMES, sections
from prunelab.notebook.selection import Choice
from prunelab.notebook.static_figures import still, svg
from prunelab.notebook.throttle import Throttle
from prunelab.notebook.view import Busy, View
from prunelab.notebook.worker import worker_of
from prunelab.session.session import Session
from prunelab.values import Ended, Importance, PathPoint, Progress, Rung

Look = Literal["auto", "light", "dark"]

_open: list[Screen] = []  # made by `show` and not closed


class Screen(Root):
    """A session as a Jupyter widget. `press` does what a button does.

    Verbs called from code run synchronously in the caller; a click only queues its verb for the
    session's worker thread, so a screen never blocks the kernel. The parts are HTML, computed
    from the state and sent where they differ; the figure, which is large, is sent after a page
    reports that it shows the other parts.
    """

    def __init__(self, session: Session, arrange: Arrange = "grid", theme: Look = "auto") -> None:
        self._endings: list[Callable[[], object]] = []  # first: a half-built widget closes too
        if not hasattr(session, "ledger"):
            raise InvalidValue(f"session is a Session, not {session!r:.60}.")
        for name, given, known in (
            ("arrange", arrange, get_args(Arrange)),
            ("theme", theme, get_args(Look)),
        ):
            if given not in known:
                raise UnknownName(name, given, known)
        self.session = session
        self.look = arrange, theme
        self.choice = Choice(session)
        self._ui = threading.RLock()  # verbs, clicks and browser messages come on several threads
        self._worker = worker_of(session)
        self._background = Background(session, self._worker, self._changed)
        self._here = False  # whether a page shows the screen; nothing is measured before
        self._at_work: list[str] = []
        self._busy: Busy | None = None
        self._error = ""
        self._throttle = Throttle()
        self._opened: set[str] = set()
        super().__init__(("warnings", "form", "picture"), (*NAMES, "state"), self._told)
        self.figure = FigureSlot(self, arrange, theme == "dark")
        self._endings += [self._background.cancel, self.layout.close]
        self._dress()
        self._refresh()
        self.complete()
        self._endings.append(session.listen(self._receive))

    # ------------------------------------------------------------ verbs

    def press(self, verb: str) -> None:
        """Do what the button `verb` does, synchronously; an error is shown as a red line."""
        if verb not in text.VERBS:
            raise UnknownName("button", verb, text.VERBS)
        if verb == "stop":
            self._stop()
        else:
            self._begin(verb)
            self._perform(verb)

    def _click(self, verb: str, arg: Any = None) -> None:
        """What a click in the browser does: queue the verb and return; Stop skips the queue."""
        if verb == "stop":
            self._stop()
            return
        with self._ui:
            if self._at_work:
                return  # a second click, sent before the first took effect
            self._begin(verb)
        self._worker.submit(partial(self._perform, verb, arg))

    def _begin(self, verb: str) -> None:
        with self._ui:
            self._at_work.append(verb)
            self._background.cancel()
            self._error = ""
            self._refresh()

    def _perform(self, verb: str, arg: Any = None, stopped: bool = False) -> None:
        trouble = ""
        try:
            if not stopped:
                self.choice.call(verb, arg)
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

    # ------------------------------------------------------------ messages of the session

    def _receive(self, told: object) -> None:
        """Show an Event, evidence or Progress; an error of the screen must not fail the verb."""
        if isinstance(told, Progress) and self.session.aside:
            return  # of a background job, of this screen or another one
        try:
            with self._ui:
                match told:
                    case Event():
                        self.choice.follow(told)
                        self._rest()
                    case Importance() | Rung() | PathPoint():
                        self.choice.seen.append(told)
                        if self._throttle.due() and told.group in self.choice.layers:
                            self._draw(self.choice.info(told.group))
                    case Progress():
                        self._progress(told)
                    case Ended() if self._outdated():
                        self._rest()
        except Exception as error:
            self._error = text.BROKEN.format(text.trouble(error, False))
            self.put(form=form(self._view()))

    def _progress(self, progress: Progress) -> None:
        self.choice.progress = progress
        elapsed = self._throttle.elapsed(progress)
        if self._throttle.due():
            rest = text.time_left(progress.done, progress.total, elapsed)
            self._busy = Busy(progress.done / max(progress.total, 1), f"{progress.what}: {rest}")
            self.put(form=form(self._view()))

    def _outdated(self) -> bool:
        """Whether the screen shows work that has ended, or an earlier method."""
        return bool(self.choice.seen or self._busy or self._method != self.session.method)

    def _rest(self) -> None:
        """Show the current state after work has ended."""
        self.choice.seen.clear()
        self._busy = None
        self._refresh()
        self._go_on()

    def _go_on(self) -> None:
        """Start the next background job after a pause of the user."""
        if self._here and not self._at_work and not self.session.busy:
            self._background.go_on(self.choice, self._opened)

    def _changed(self) -> None:
        """A background job has begun or ended."""
        with self._ui:
            if not self._background.at_work:
                self._choose(self.choice.catch_up, self._error)
            else:
                self._refresh()

    # ------------------------------------------------------------ messages of the page

    def _told(self, do: str, arg: Any, value: Any, live: bool) -> None:
        """Handle an action of the user on the page, or a message of the page itself."""
        match do:
            case "press" if arg in text.VERBS:
                self._click(arg)
            case "go" | "instead":
                self._click(do, arg and int(arg))
            case "export":
                self._click("export", str(arg or value))
            case "keep":
                self._stop(keep=True)
            case "here":
                self._shown(bool(value))
            case "load":
                self._try(self.figure.load)
            case "figure":
                if not self.figure.drawn(int(value)):
                    self._draw_again()
            case "narrow":
                self._fit(bool(value))
            case "unfold":
                self._unfold(str(arg), bool(value))
            case _:
                self._opened |= {COMPARE} if do == "point" else set()
                self._choose(lambda: self.choice.change(do, arg, value, live))

    def _choose(self, change: Callable[[], None], error: str = "") -> None:
        """Change the selection; show its effect, or why it is not valid."""
        with self._ui:
            self._error = error
            try:
                change()
            except Exception as error:
                self._error = text.trouble(error, isinstance(error, PruneLabError))
            self._refresh()
            self._go_on()

    def _unfold(self, name: str, opened: bool) -> None:
        with self._ui:
            (self._opened.add if opened else self._opened.discard)(name)
            self._dress()
            self._refresh()
            self._go_on()

    def _shown(self, bare: bool) -> None:
        """A page shows the screen: send a picture now, then the figure."""
        with self._ui:
            if self._here:
                self.show_again()
            self._here = True
            self.figure.appear(self._info())
            # answered at once: a page that waits for so much would take the kernel for lost
            animate = threading.Thread(target=self._animate, args=(bare,), name="prunelab-figure")
            animate.daemon = True
            animate.start()

    def _animate(self, bare: bool) -> None:
        """Send the figure to a page, and the code that draws it to a `bare` one."""
        with self._ui:
            if self._endings:
                if bare:
                    self._try(self.figure.load)
                self._draw_again()
                self._go_on()

    def _draw_again(self) -> None:
        """Send the whole figure: to a new page, or to one that missed a redraw."""
        with self._ui:
            info = self._info()
            self._try(lambda: self.figure.draw(info))
            self.put(drawing=self.figure.number)

    def _try(self, figure: Callable[[], None]) -> None:
        """Send the figure or its code, or show why that failed."""
        with self._ui:
            try:
                figure()
            except Exception as error:
                self._error = text.NO_FIGURE.format(text.trouble(error, False))
                self._refresh()

    def _draw(self, info: BoardInfo, **parts: str) -> None:
        """Show `parts`, and the figure `info` that belongs to them."""
        self.put(**parts, drawing=self.figure.numbered(info))
        self.figure.show(info)

    def _fit(self, narrow: bool) -> None:
        with self._ui:
            self.figure.fit(narrow)
            self._dress()
            self._draw(self._info())

    def _dress(self) -> None:
        """Set the classes that the style refers to."""
        whole = ["whole"] if FIGURE in self._opened else []
        self.look_like(self.look[1], self.figure.arrange, *whole)

    # ------------------------------------------------------------ showing

    def _info(self) -> BoardInfo:
        return self._view().info

    def _view(self) -> View:
        at_work = self._at_work or ([self.session.busy or ""] if self._busy else [])
        choice = self.choice
        return choice.view(
            at_work=tuple(filter(None, at_work)),
            busy=self._busy,
            error=self._error,
            opened=frozenset(self._opened),
            tried=self._background.tried(choice.move),
            repaired=self._background.tried(choice.move, repaired=True) if choice.repairs else None,
            certificate=self._background.certificate(choice.move, choice.group),
            channel=self._background.channel(choice.group, choice.unit),
            step_time=self._background.step_time(),
            difference=self._background.difference(choice.ends),
            background=self._background.at_work,
        )

    def _refresh(self) -> None:
        """Compute every part from the state; only changes are sent."""
        view = self._view()
        self._method = view.method
        below = sections(view, list(self.session.ledger))
        self._draw(view.info, warnings=warnings(), form=form(view), **below, state=line(view))

    def close(self) -> None:
        """Close the widget and stop listening to the session."""
        for end in self._endings:
            end()
        self._endings.clear()
        if self in _open:
            _open.remove(self)
        super().close()

    def __repr__(self) -> str:
        return f"Screen({self.session.state.line()})"

    def _ipython_display_(self, **_: Any) -> None:
        """Show a picture, which hides while the screen lives, and the screen.

        JupyterLab without a kernel shows no widget, and nothing else of a widget's bundle.
        """
        bundle, metadata = self._repr_mimebundle_()
        picture, line = bundle.pop("image/svg+xml"), bundle["text/plain"]
        display({"text/html": still(picture, line), "text/plain": line}, raw=True)
        display(bundle, metadata=metadata, raw=True)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget and, for pages without widgets, a line and a picture that are reproducible."""
        made = super()._repr_mimebundle_(**kwargs)
        assert made is not None  # it has a view
        bundle, metadata = made
        view = self._view()
        bundle["text/plain"] = repr(self)
        bundle["image/svg+xml"] = svg(view.info, view.state.line(), reason(view))
        return bundle, metadata


def show(session: Session, arrange: Arrange = "grid", theme: Look = "auto") -> Screen:
    """A screen for `session`; a notebook cell that ends with it shows it.

    A cell that is run again shows the existing screen.

    Parameters
    ----------
    session
        The session to show.
    arrange
        "grid" puts the panels beside each other, "stack" under each other, as a screen narrower
        than 700 px always does.
    theme
        "light", "dark", or "auto", which follows JupyterLab's theme.

    Raises
    ------
    UnknownName
        For another `arrange` or `theme`.
    """
    for screen in [*_open]:
        if screen.session is session and screen.look == (arrange, theme):
            if screen.lost:
                screen.close()
            else:
                return screen
    made = Screen(session, arrange, theme)
    _open.append(made)
    return made
