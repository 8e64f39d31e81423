"""The screen's keys and its width: the little that only the browser can do."""

from __future__ import annotations

import anywidget
from traitlets import Bool

from prunelab.figures.board import HEIGHTS, NARROW

SCREEN = "prunelab-screen"

_ESM = """
export default { render({ model, el }) {
  const verbs = { p: "Propose", a: "Approve", e: "Adjust", r: "Reject", u: "Undo" };
  let root = null, width = 0, later = 0, ended = false;
  const pressed = (event) => {
    const typing = event.target.closest("input, textarea, select");
    const verb = verbs[event.key];
    if (!verb || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault(); event.stopPropagation();
    for (const button of root.querySelectorAll("button"))
      if (button.textContent.trim() === verb) button.click();
  };
  // plotly draws before it is on the page, and looks for its size only when the *window* changes
  // size: say that it did, and say it again until the picture has the size of its place
  const size = (node) => {
    const box = node.getBoundingClientRect();
    return [box.width, box.height];
  };
  const fit = (wait) => {
    clearTimeout(later);
    if (ended || !root.clientWidth) return;  // 0: behind another tab
    if (root.clientWidth !== width) {
      width = root.clientWidth;
      model.set("narrow", width < NARROW); model.save_changes();
    }
    const place = root.querySelector(".js-plotly-plot"), drawn = place?.querySelector(".main-svg");
    if (!drawn) return;
    const [is, ought] = [size(drawn), size(place)];
    if (is.every((length, side) => Math.abs(length - ought[side]) < 2)) return;
    window.dispatchEvent(new Event("resize"));
    if (wait < 10000) later = setTimeout(fit, wait, 2 * wait);
  };
  const sized = new ResizeObserver(() => requestAnimationFrame(() => fit(300)));
  const frame = () => {
    root = el.closest(".SCREEN");
    if (!root) { if (!ended) requestAnimationFrame(frame); return; }
    root.tabIndex = 0;
    root.dataset.lmSuppressShortcuts = "true";  // JupyterLab's own a and r would act first
    root.addEventListener("keydown", pressed, true);
    sized.observe(root);
  };
  requestAnimationFrame(frame);
  return () => {
    ended = true; sized.disconnect(); clearTimeout(later);
    if (root) root.removeEventListener("keydown", pressed, true);
  };
} };
"""

_CSS = """
.SCREEN { color: var(--jp-ui-font-color1, inherit); overflow: hidden; }
.SCREEN:focus { outline: none; }
.SCREEN:focus-visible { outline: 2px solid #0072B2; outline-offset: -2px; }
.SCREEN .widget-html-content { font-size: 14px; line-height: 1.45; }
.SCREEN button { font-size: 14px; }
.SCREEN.prunelab-auto .js-plotly-plot text { fill: var(--jp-ui-font-color1, #222) !important; }
.SCREEN .prunelab-error { color: var(--jp-error-color0, #b00020); font-weight: 600; }
.prunelab-history { border-collapse: collapse; font-size: 13px; }
.prunelab-history th, .prunelab-history td { padding: 2px 10px 2px 0; text-align: left; }
"""

_TALL = "\n".join(
    f".SCREEN.prunelab-{name} .js-plotly-plot {{ height: {px}px; }}" for name, px in HEIGHTS.items()
)


class Keys(anywidget.AnyWidget):
    """Clicks the screen's buttons for p, a, e, r and u while the screen has the focus."""

    _esm = _ESM.replace("SCREEN", SCREEN).replace("NARROW", f"{NARROW}")
    _css = (_CSS + _TALL).replace("SCREEN", SCREEN)

    narrow = Bool(False, help="whether the screen is too narrow for two columns").tag(sync=True)
