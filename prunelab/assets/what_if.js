// "What if these channels go?", answered in the page from the matrices that it holds.
"use strict";
{
const $ = (name) => document.getElementById(`if-${name}`);
const NS = "http://www.w3.org/2000/svg";
const POWERS = Float64Array.from({ length: 32 }, (_, e) => 2 ** (Math.max(e, 1) - 25));
const percent = (x) => x >= 0.9995 || x === 0 ? `${Math.round(100 * x)}%`
  : `${(100 * x).toPrecision(x < 0.0995 ? 2 : 3)}%`;
const si = (x) => {
  const [by, unit] = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]].find(([by]) => x >= by)
    ?? [1, ""];
  return `${Number((x / by).toPrecision(3))} ${unit}`.trim();
};

// float16 numbers in base 64, as shares of the float32 that comes first
const halves = (text) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer), top = view.getFloat32(0, true);
  return Float64Array.from({ length: (bytes.length - 4) / 2 }, (_, index) => {
    const half = view.getUint16(4 + 2 * index, true), exponent = (half >> 10) & 31;
    const size = ((exponent ? 1024 : 0) + (half & 1023)) * POWERS[exponent];
    return (half >> 15 ? -size : size) * top;
  });
};

const networksShown = () => {
  const { groups, original, points } = networks;
  const slide = $("network"), first = points.find((point) => point.seq === 0) ?? points[0];
  slide.max = points.length - 1;
  const show = () => {
    const point = points[slide.value];
    const metrics = Object.entries(point.metrics).map(([name, value]) => `${name} ${value}`);
    $("network-line").textContent = `Event ${point.seq}: ${si(point.macs)} MACs `
      + `(${percent(point.macs / first.macs)} of the original), ${si(point.params)} parameters `
      + `(${percent(point.params / first.params)}), validation ${metrics.join(", ")}.`;
    $("widths").replaceChildren(...groups.flatMap((name, index) => {
      const bar = make("div", "", "bar"), part = make("div", "", "part");
      part.style.width = `${100 * point.widths[index] / original[index]}%`;
      bar.append(part);
      return [make("span", name), bar, make("span", `${point.widths[index]} of ${original[index]}`)];
    }));
  };
  slide.value = points.findIndex((point) => point.seq === steps.at(-1).seq);
  if (Number(slide.value) < 0) slide.value = points.length - 1;
  slide.oninput = show;
  show();
};

const decide = () => {
  const groups = whatIf.groups.map((group) => ({
    ...group, alone: halves(group.alone), dropped: new Set(), read: null,
  }));
  // the matrix of a group is read when it is first asked for
  const gramOf = (group) => group.read ??= group.gram && halves(group.gram);
  // the share of the signal that a set of positions carries; null where the page cannot know it
  const damage = (group, set) => {
    const greedy = group.order.slice(0, set.size);
    if (greedy.every((at) => set.has(at))) return set.size ? group.lost[set.size - 1] : 0;
    const gram = gramOf(group);
    if (!gram) return null;
    const places = [...set];
    let lost = 0;
    for (const i of places) for (const j of places)
      if (j <= i) lost += (i === j ? 1 : 2) * gram[i * (i + 1) / 2 + j];
    return Math.max(0, lost);
  };
  // how many units greedy removal takes below a share, at widths that the network can have
  const most = (group, share) => {
    const { units, least, step, lost } = group;
    let count = 0;
    while (count < units.length - least && lost[count] < share) count += 1;
    while (count && (units.length - count) % step) count -= 1;
    return count;
  };
  const costs = () => {
    const found = [...whatIf.start], left = groups.map((group) => group.dropped.size);
    groups.forEach((group, index) => {
      for (const k of [0, 1]) found[k] += left[index] * group.linear[k];
    });
    for (const [a, b, macs, params] of whatIf.pairs) {
      found[0] += left[a] * left[b] * macs;
      found[1] += left[a] * left[b] * params;
    }
    return found;
  };

  const pick = $("group"), share = $("share"), bars = $("bars");
  pick.append(...groups.map((group, index) => {
    const option = make("option", `${group.name} (${group.units.length} channels)`);
    option.value = index;
    return option;
  }));
  const chosen = () => groups[pick.value];

  const told = () => {
    const group = chosen(), { units, least, step, dropped } = group;
    const left = units.length - dropped.size, lost = damage(group, dropped);
    const said = [];
    if (!dropped.size) said.push(`All ${left} channels of ${group.name} stay.`);
    else if (lost === null) said.push(`${group.name} is too wide for sets chosen by hand: use the `
      + `slider, or Python.`);
    else said.push(`Without ${dropped.size} of ${units.length} channels of ${group.name} the `
      + `layers that read it lose ${percent(lost)} of their signal.`);
    if (left < least) said.push(`At least ${least} must stay.`);
    else if (left % step) said.push(`Its width must be a multiple of ${step}.`);
    $("sentence").textContent = said.join(" ");
    const [macs, params] = whatIf.start ? costs() : [NaN, NaN];
    const first = networks.points.find((point) => point.seq === 0) ?? networks.points[0];
    $("costs").textContent = !whatIf.start ? "" : `The network: ${si(macs)} MACs `
      + `(${percent(macs / first.macs)} of the original), ${si(params)} parameters `
      + `(${percent(params / first.params)}), before any repair.`;
    const rows = groups.filter((one) => one.dropped.size).map((one) => {
      const gone = damage(one, one.dropped);
      return [one.name, `${one.original}`, `${one.units.length}`,
        `${one.units.length - one.dropped.size}`, gone === null ? "" : percent(gone)];
    });
    $("table").replaceChildren(...(rows.length
      ? [table(["channel group", "original", "now", "then", "signal lost"], rows)] : []));
  };

  const drawBars = () => {
    const group = chosen(), { units, order, alone, dropped } = group;
    const wide = 1120, high = 150, pitch = wide / units.length;
    const top = Math.max(...alone, 1e-12);
    bars.setAttribute("viewBox", `0 0 ${wide} ${high}`);
    bars.replaceChildren(...order.map((at, place) => {
      const bar = document.createElementNS(NS, "g"), name = document.createElementNS(NS, "title");
      const size = Math.max(2, (high - 10) * Math.sqrt(alone[at] / top));
      const part = (y, height, kind) => {
        const rect = document.createElementNS(NS, "rect");
        for (const [key, value] of Object.entries({
          x: place * pitch, y, width: Math.max(pitch - Math.min(2, pitch / 4), 0.5), height,
          class: kind,
        })) rect.setAttribute(key, value);
        return rect;
      };
      name.textContent = `channel ${units[at]}: ${percent(alone[at])} of the signal alone`;
      bar.setAttribute("class", dropped.has(at) ? "gone" : "stays");
      bar.setAttribute("role", "button");
      bar.setAttribute("tabindex", "0");
      bar.setAttribute("aria-pressed", String(dropped.has(at)));
      bar.append(name, part(0, high, "back"), part(high - size, size, "front"));
      const flip = () => {
        if (!dropped.delete(at)) dropped.add(at);
        const gone = dropped.has(at);
        bar.setAttribute("class", gone ? "gone" : "stays");
        bar.setAttribute("aria-pressed", String(gone));
        told();
      };
      bar.onclick = flip;
      bar.onkeydown = (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        event.stopPropagation();
        flip();
      };
      return bar;
    }));
  };

  const drag = () => {
    const limit = 10 ** Number(share.value);
    $("share-text").textContent = percent(limit);
    const some = $("every-layer").checked ? groups : [chosen()];
    for (const group of some) group.dropped = new Set(group.order.slice(0, most(group, limit)));
    drawBars();
    told();
  };
  share.oninput = drag;
  $("every-layer").onchange = drag;
  $("none").onclick = () => {
    for (const group of groups) group.dropped = new Set();
    drawBars();
    told();
  };
  pick.onchange = () => { drawBars(); told(); };
  $("measured").textContent = `Evidence ${whatIf.measured}. Channels stand in the order in which `
    + `they are missed least; the bar is the share of the signal of each alone, on a root scale. `
    + `Click a bar to drop the channel, or drag the slider.`;
  $("share-text").textContent = percent(10 ** Number(share.value));
  drawBars();
  told();
};

networksShown();
if (whatIf && whatIf.groups.length) decide();
else $("decide").hidden = true;
}
