"""Two screens on one page."""

from __future__ import annotations

from typing import Any

import pytest
from lab import opened, press, settled

pytestmark = pytest.mark.browser


def test_two_screens_of_a_page_share_plotly_and_the_session(browser: Any, lab: str) -> None:
    page = opened(browser, lab, "two.ipynb", height=2400)
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("document.querySelectorAll('.prunelab-screen.pl-drawn').length === 2")
    settled(page)
    loads = page.evaluate(
        """async () => {
             const { kernel } = jupyterapp.shell.currentWidget.sessionContext.session;
             const asked = kernel.requestExecute({ code: 'print(len(loads))' }); let said = '';
             asked.onIOPub = ({ content }) => { said += content.text ?? ''; };
             await asked.done;
             return said.trim(); }"""
    )
    assert loads == "1"
    assert page.evaluate("window.Plotly") is None, "the page's own is left as it was"
    press(page, "propose")
    page.wait_for_function(
        """() => { const [one, two] = [...document.querySelectorAll('.prunelab-screen')].map(
             s => s.querySelector('.pl-question').textContent);
             return one === two && one.startsWith('Remove '); }"""
    )
    page.wait_for_function(
        """() => [...document.querySelectorAll('.js-plotly-plot')].every(
             plot => plot.data.find(t => t.name === 'drop').x.length > 0)"""
    )
    page.close()
