// Plotly's widget, which is 5 MB of JavaScript: it comes packed, is unpacked once a page, and says
// so where it cannot be.

const unpacked = async (model) => {
  const stream = new Blob([model.get("_packed")]).stream()
    .pipeThrough(new DecompressionStream("gzip"));
  const script = new Blob([await new Response(stream).arrayBuffer()], { type: "text/javascript" });
  const address = URL.createObjectURL(script);
  try { return (await import(address)).default; } finally { URL.revokeObjectURL(address); }
};

export default () => {
  let widget = null, trouble = null;
  return {
    async initialize(given) {
      try {
        const make = await (globalThis.prunelabPlotly ??= unpacked(given.model));
        widget = make();
        await widget.initialize(given);
      } catch (error) {
        globalThis.prunelabPlotly = undefined;
        trouble = error;
      }
    },
    render(given) {
      if (!trouble) return widget.render(given);
      const told = document.createElement("p");
      told.className = "pl-error";
      told.setAttribute("role", "alert");
      told.textContent = given.model.get("_sorry").replace("{}", String(trouble));
      given.el.append(told);
    },
  };
};
