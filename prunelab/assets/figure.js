// The figure. plotly.js draws it, which is 4.8 MB: the kernel sends it packed, once a page, where
// globalThis.prunelabPlotly is the promise of it.

const unpacked = async (packed) => {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const code = await new Response(stream).arrayBuffer();
  const script = ["const module = { exports: {} };\n", code, "\nexport default module.exports;"];
  const address = URL.createObjectURL(new Blob(script, { type: "text/javascript" }));
  const { Plotly, PlotlyConfig } = window;  // of the page, or of another widget
  window.PlotlyConfig = { MathJaxConfig: "local" };
  try { return (await import(address)).default; } finally {
    URL.revokeObjectURL(address);
    Object.assign(window, { Plotly, PlotlyConfig });
  }
};

// Whether the page's plotly is there, or on its way to any screen; from now on it is.
const awaited = () => {
  if (globalThis.prunelabPlotly) return true;
  let done;
  globalThis.prunelabPlotly = new Promise((resolve) => { done = resolve; });
  globalThis.prunelabPlotly.load = (packed) => done(unpacked(packed));
  return false;
};

// What the kernel's `changes` describe, made of `old` without touching it: plotly.js takes a list
// for changed when it is another list.
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const merged = (old, changes) => {
  if (!isObject(changes) || old === null || typeof old !== "object") return changes;
  const made = Array.isArray(old) ? [...old] : { ...old };
  for (const [key, value] of Object.entries(changes))
    if (value === null) delete made[key]; else made[key] = merged(made[key], value);
  return made;
};

// A copy for plotly.js, which writes into what it is given, though not into lists of numbers.
const copied = (value) => {
  if (Array.isArray(value)) return value.some(isObject) ? value.map(copied) : value;
  if (!isObject(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, copied(inner)]));
};

// plotly draws a figure 700 px wide where its place has no size yet, and later lets it jump
const laidOut = (place) => new Promise((done) => {
  const seen = new ResizeObserver(() => {
    if (!place.clientWidth) return;
    seen.disconnect();
    done();
  });
  seen.observe(place);
});

// The figure in `place`. `drew` is called when it stands there for the first time, `clicked` with
// what a click tells and the customdata of the point.
const figureIn = (place, { drew, clicked }) => {
  let board = null, plotly = null, drawing = false, again = false, ended = false;
  const draw = async () => {
    again = true;
    if (drawing) return;
    drawing = true;
    try {
      const first = !plotly;
      if (first) await laidOut(place);
      plotly ??= await globalThis.prunelabPlotly;
      while (again && !ended) {
        again = false;
        await plotly.react(place, board.data.map(copied), copied(board.layout), { displayModeBar: false });
      }
      if (!first || ended) return;
      place.on("plotly_click", ({ points: [point] }) => {
        const told = board.clicks[point.curveNumber];
        if (told) clicked(told, point.customdata);
      });
      drew();
    } finally { drawing = false; }
  };
  const size = (node) => { const { width, height } = node.getBoundingClientRect(); return [width, height]; };
  return {
    // the number of the figure that is drawn, 0 if none
    get number() { return (plotly && place.layout?.meta) || 0; },
    // whether it is here, but not the code that draws it
    get waits() { return board !== null && !plotly; },
    // the kernel's changes of the figure numbered `after`; of another one they are of no use
    change({ after, changes }) {
      if (board?.layout.meta !== after) return Promise.resolve();
      board = merged(board, changes);
      return draw();
    },
    draw(figure) { board = figure; return draw(); },
    // whether it has the size of its place; if not, it is drawn in that size
    fits() {
      const drawn = place.querySelector(".main-svg");
      if (!drawn) return true;
      const [is, ought] = [size(drawn), size(place)];
      if (is.every((length, side) => Math.abs(length - ought[side]) < 2)) return true;
      plotly.Plots.resize(place);
      return false;
    },
    end() { ended = true; plotly?.purge(place); },
  };
};
