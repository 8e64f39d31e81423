// The screen. The kernel writes every part as HTML; this file puts it on the page, changing only what
// differs, and tells the kernel what is pressed, typed and dragged:
//   data-do="verb" data-arg="..."   what a click, or a change of the value, tells the kernel
//   data-live                       a value that is told while it moves, not only when it rests
//   data-filter="region"            a box that hides the rows of a region without its text
//   data-section="name"                a <details> whose contents the kernel makes once it is open
// It holds no text of its own.

const NARROW = 700;      // px; narrower screens stand in one column
const PATIENCE = 2500;   // ms without an answer until the page says so, and asks again
const CHECK = 1000;      // ms between two looks at whether text and figure agree
const PATIENT = 10;      // such looks until the code of the figure is asked for again
const RESIZE = 300;      // ms until the figure is looked at again, while it does not fit
const LATE = 20000;      // ms until the page says that the figure has not come

let views = 0;

// What a person types or drags is theirs: it is neither replaced nor rewritten.
const focused = (node) => node.getRootNode().activeElement;  // a front end may use a shadow root
const theirs = (node) => node.editing
  || (node === focused(node) && node.matches("input:not([type=range], [type=checkbox])"));

// Whether the front end is dark: as JupyterLab, then marimo, VS Code and Colab tell it.
const dark = () => document.body.dataset.jpThemeLight === "false"
  || [document.body, document.documentElement].some(
    (node) => node.matches(".dark, .vscode-dark, .vscode-high-contrast, [theme=dark]"));

// JupyterLab's own shortcuts would act first, also where a control of the screen has the keyboard: x
// cuts the cell. It looks for this on the way from the control to what its shortcut is meant for.
const suppress = (node) => { node.dataset.lmSuppressShortcuts = "true"; };

// Controls and sections have ids, so that idiomorph finds them again wherever they went.
function identify(root, view) {
  const taken = new Set();
  root.querySelectorAll("*").forEach(suppress);
  for (const node of root.querySelectorAll("[data-key], [data-do], [data-filter]")) {
    const { key, do: verb, arg } = node.dataset;
    const id = [view, node.localName, ...(key ? [key] : [verb ?? "", arg ?? ""])].join(" ");
    if (!taken.has(id)) node.id = id;
    taken.add(id);
  }
}

// Make `old` what `fresh` is; returns whether a value was left to the person.
function morph(old, fresh) {
  let left = false;
  const updated = (name, node) => {
    if (name === "open") return !node.id;  // the person's, once the section is on the page
    if (name === "hidden" || (name === "value" && node.dataset.filter)) return false;
    const kept = name === "disabled" ? node.editing
      : ["value", "checked"].includes(name) && theirs(node);
    left ||= Boolean(kept);
    return !kept;
  };
  Idiomorph.morph(old, fresh, {
    morphStyle: "innerHTML", callbacks: { beforeAttributeUpdated: updated },
  });
  return left;
}

function render({ model, el }) {
  const regions = {}, root = document.createElement("div");
  const column = (names) => {
    const part = document.createElement("div");
    part.className = "pl-part";
    for (const name of names) {
      regions[name] = document.createElement("div");
      regions[name].className = `pl-${name}`;
      part.append(regions[name]);
    }
    return part;
  };
  const sheet = column(model.get("_above")), place = document.createElement("div");
  const picture = document.createElement("div");
  picture.className = "prunelab-figure";
  place.className = "prunelab-place";
  place.append(picture);
  root.className = "prunelab-screen";
  root.append(sheet, place, column(model.get("_below")));
  el.append(root);
  let ended = false, count = 0, flying = null, timer = 0;
  const view = `pl${++views}`, unsettled = new Set();  // parts in which a value was left
  const queue = [];
  let revealed;  // how often the comparison was asked for, when the page was last told

  // ---------------------------------------------------------------- to and from the kernel

  // One message is on its way at a time; of a value that moves only the latest waits behind it.
  const tell = (message) => {
    const same = queue.findIndex((m) => m.live && m.do === message.do && m.arg === message.arg);
    if (same >= 0) queue.splice(same, 1);
    queue.push(message);
    next();
  };
  const next = () => {
    if (flying || !queue.length) return;
    flying = queue.shift();
    flying.n = `${Date.now()}.${++count}`;
    sheet.classList.add("pl-waits");
    send(PATIENCE);
  };
  // While a page loads anew, a message can get lost on either way: the kernel knows one that
  // comes twice by its number, and only answers it again.
  const send = (wait) => {
    clearTimeout(timer);
    if (ended) return;
    timer = setTimeout(() => { root.classList.add("pl-waiting"); send(2 * wait); }, wait);
    try { model.send(flying); } catch { /* a kernel that is gone: the timer shows it */ }
  };
  const heard = () => {
    if (!flying || model.get("_heard") !== flying.n) return;
    flying = null;
    clearTimeout(timer);
    root.classList.remove("pl-waiting");
    sheet.classList.toggle("pl-waits", queue.length > 0);
    next();
    settle();
  };
  const settle = () => { if (!flying) [...unsettled].forEach(show); };

  const show = (name) => {
    const fresh = document.createElement("div"), held = root.contains(focused(root));
    fresh.innerHTML = model.get(`html_${name}`);
    identify(fresh, view);
    const left = morph(regions[name], fresh);
    for (const node of regions[name].querySelectorAll("details[data-reveal]")) reveal(node);
    unsettled[left ? "add" : "delete"](name);
    regions[name].querySelectorAll("[data-filter]").forEach(filter);
    const at = focused(root);  // a button that is switched off or gone drops the keyboard
    if (held && (at?.disabled || !root.contains(at))) root.focus({ preventScroll: true });
  };
  const reveal = (node) => {
    const earlier = revealed;
    revealed = node.dataset.reveal;
    if (earlier === undefined || earlier === revealed) return;
    node.open = true;
    node.scrollIntoView({ block: "nearest" });
  };
  const filter = (box) => {
    const wanted = box.value.trim().toLowerCase();
    for (const row of regions[box.dataset.filter].querySelectorAll("[data-row]"))
      row.hidden = wanted !== "" && !row.dataset.row.toLowerCase().includes(wanted);
    for (const module of regions[box.dataset.filter].querySelectorAll(".pl-module")) {
      const some = module.querySelector("[data-row]:not([hidden])") !== null;
      module.hidden = !some;
      if (wanted && some) module.open = true;
    }
  };

  // ---------------------------------------------------------------- what the person does

  const valueOf = (node) => (node.type === "checkbox" ? node.checked : node.value);
  const told = (node, live) => ({
    do: node.dataset.do, arg: node.dataset.arg ?? null, value: valueOf(node) ?? null, live,
  });
  const clicked = (event) => {
    const node = event.target.closest("[data-do]");
    if (!node || node.matches("input, select, textarea") || node.disabled) return;
    if (node.ariaDisabled === "true") return;
    tell(told(node, false));
  };
  const typed = (event) => {
    const node = event.target;
    if (node.dataset.filter) return filter(node);
    if (!node.dataset.do) return;
    node.editing = true;
    if ("live" in node.dataset) tell(told(node, true));
  };
  const changed = (event) => {
    const node = event.target;
    if (!node.dataset?.do) return;
    if (node.editing) {
      node.editing = false;
      // what is refused changes no HTML: what holds instead is shown once the kernel has answered
      unsettled.add(Object.keys(regions).find((name) => regions[name].contains(node)));
      tell(told(node, false));
    } else if (event.type === "focusout") setTimeout(settle);
  };
  const entered = (event) => { if (event.key === "Enter") changed(event); };
  const unfolded = (event) => {
    const node = event.target;
    if (node.dataset?.section)
      tell({ do: "unfold", arg: node.dataset.section, value: node.open, live: false });
  };
  root.addEventListener("click", clicked);
  root.addEventListener("input", typed);
  for (const end of ["change", "focusout"]) root.addEventListener(end, changed);
  root.addEventListener("keydown", entered);
  root.addEventListener("toggle", unfolded, true);

  const heeded = [];  // model events; they outlast the view, unless they are let go
  const heed = (event, react) => { heeded.push([event, react]); model.on(event, react); };
  for (const name in regions) { show(name); heed(`change:html_${name}`, () => show(name)); }
  revealed ??= "";
  heed("change:_heard", heard);
  let kinds = [];
  const dress = () => {
    root.classList.remove(...kinds);
    kinds = model.get("_kinds").map((kind) => `prunelab-${kind}`);
    root.classList.add(...kinds);
  };
  dress();
  heed("change:_kinds", dress);
  const shade = () => root.classList.toggle("pl-dark", dark());
  const shaded = new MutationObserver(shade);
  shade();
  for (const node of [document.body, document.documentElement])
    shaded.observe(node, { attributes: true });

  // ---------------------------------------------------------------- the screen as a whole

  const keys = { p: "propose", a: "approve", e: "adjust", r: "reject", u: "undo" };
  const pressed = (event) => {
    const verb = keys[event.key];
    if (!verb || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input:not([type=range]):not([type=checkbox]), textarea, select")) return;
    event.preventDefault(); event.stopPropagation();
    root.querySelector(`[data-do=press][data-arg=${verb}]:not(:disabled)`)?.click();
  };
  let width = 0, later = 0, late = 0, checking = 0, odd = "", failed = false, looks = 0, patient = PATIENT;
  const figure = figureIn(picture, {
    clicked: (told, value) => tell({ do: told, arg: null, value, live: false }),
    drew: () => {
      clearTimeout(late);
      root.classList.remove("pl-late");
      root.classList.add("pl-drawn");
      fit(RESIZE);
      tell({ do: "figure", arg: null, value: figure.number, live: false });
    },
  });
  // Without the figure its picture stays, and says why.
  const sorry = (error) => {
    failed = true;
    globalThis.prunelabPlotly = undefined;
    clearTimeout(late);
    const told = document.createElement("p");
    told.className = "pl-error";
    told.setAttribute("role", "alert");
    told.textContent = model.get("_sorry").replace("{}", String(error));
    place.after(told);
  };
  heed("msg:custom", (message, buffers) => {
    const draw = { change: (told) => figure.change(told), draw: (told) => figure.draw(told.figure) };
    if (message.do === "load") globalThis.prunelabPlotly?.load(buffers[0]);
    else if (!failed) draw[message.do]?.(message).catch(sorry);
  });
  // The text says which figure belongs to it. A page that loads anew can miss a redraw, and a
  // figure that stays another one says so, to be sent again; so is the code, if it does not come.
  const check = () => {
    const pair = `${figure.number} ${model.get("_drawing")}`;
    const missed = figure.number !== model.get("_drawing") && pair === odd;
    odd = pair;
    if (!missed || flying || failed) return;
    if (!figure.waits) tell({ do: "figure", arg: null, value: figure.number, live: false });
    else if (++looks === patient) {
      [looks, patient] = [0, 2 * patient];
      tell({ do: "load", arg: null, value: null, live: false });
    }
  };
  // plotly does not follow the size of its place: it is told, until the picture has that size
  const fit = (wait) => {
    clearTimeout(later);
    if (ended || !root.clientWidth) return;  // 0: behind another tab
    if (root.clientWidth !== width) {
      const was = width;
      width = root.clientWidth;
      root.classList.toggle("pl-narrow", width < NARROW);
      if (!was || was < NARROW !== width < NARROW)
        tell({ do: "narrow", arg: null, value: width < NARROW, live: false });
    }
    if (!figure.fits() && wait < 10000) later = setTimeout(fit, wait, 2 * wait);
  };
  const sized = new ResizeObserver(() => requestAnimationFrame(() => fit(RESIZE)));
  const appear = () => {
    if (ended) return;
    if (!root.clientWidth) { requestAnimationFrame(appear); return; }
    root.tabIndex = 0;
    suppress(root);
    root.addEventListener("keydown", pressed, true);
    sized.observe(root);
    late = setTimeout(() => root.classList.add("pl-late"), LATE);
    // two frames later the first picture is on the page: only now may the figure be sent
    requestAnimationFrame(() => requestAnimationFrame(() => {
      performance.mark("prunelab-painted");
      tell({ do: "here", arg: null, value: !awaited(), live: false });
      checking = setInterval(check, CHECK);
    }));
  };
  requestAnimationFrame(appear);

  return () => {
    ended = true;
    sized.disconnect(); shaded.disconnect(); clearTimeout(later); clearTimeout(late); clearTimeout(timer);
    clearInterval(checking);
    for (const [event, react] of heeded) model.off(event, react);
    figure.end();
  };
}

export default { render };
