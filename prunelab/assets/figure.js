// Plotly's widget, which is 5 MB of JavaScript: it comes packed, is unpacked once a page, and says
// so where it cannot be. All of that waits for the first view: a widget that is not initialised
// within two seconds never hears from the kernel again.

const unpacked = async (model) => {
  const stream = new Blob([model.get("_packed")]).stream()
    .pipeThrough(new DecompressionStream("gzip"));
  const script = new Blob([await new Response(stream).arrayBuffer()], { type: "text/javascript" });
  const address = URL.createObjectURL(script);
  try { return (await import(address)).default; } finally { URL.revokeObjectURL(address); }
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

export default () => {
  let begun = null, ready = null, heard = [];
  // plotly's view goes on listening when it has left the page, where it fails at every change, and
  // the figure that has taken its place then misses it: what a view listens to ends with it
  const noting = (model) => new Proxy(model, { get: (real, name) => {
    const own = real[name];
    if (name !== "on") return typeof own === "function" ? own.bind(real) : own;
    return (event, told) => { heard.push([event, told]); return real.on(event, told); };
  } });
  const begin = async () => {
    const make = await (globalThis.prunelabPlotly ??= unpacked(begun.model));
    const widget = make();
    widget.initialize({ ...begun, model: noting(begun.model) });
    return widget;
  };
  return {
    initialize(given) { begun = given; },
    async render(given) {
      try {
        const widget = await (ready ??= begin());
        await laidOut(given.el);
        heard = [];
        const end = widget.render(given), own = heard;
        return () => { for (const [event, told] of own) begun.model.off(event, told); end?.(); };
      } catch (error) {
        globalThis.prunelabPlotly = undefined;
        const told = document.createElement("p");
        told.className = "pl-error";
        told.setAttribute("role", "alert");
        told.textContent = given.model.get("_sorry").replace("{}", String(error));
        given.el.append(told);
      }
    },
  };
};
