// The posterior of one image as a small figure, and class probabilities as bars. No HTML is ever made from text.

const SPACE = "http://www.w3.org/2000/svg";
const WIDTH = 320, HEIGHT = 136, BOTTOM = 100, TOP = 6, SIDE = 12;

function shape(name, attributes, text) {
  const made = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Ticks at round numbers, four to seven of them.
function ticks(low, high) {
  const span = high - low, power = 10 ** Math.floor(Math.log10(span / 4));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((s) => span / s <= 6) ?? 10 * power;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * span; k += 1) found.push(k * step);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (step / power === 2.5 ? 1 : 0));
  return found.map((value) => [value, minus(value.toFixed(decimals))]);
}

export function minus(text) {
  return text.replace("-", "\u2212");
}

// posterior: {low, high, density, shown: [from, to], decimals}; quantiles: [5, 50, 16, 84, 95 %] by name.
export function posteriorFigure(posterior, { q05, q16, q84, q95, median }, unit) {
  const { low, high, density, decimals } = posterior, n = density.length, peak = Math.max(...density);
  const [first, last] = posterior.shown;
  const x = (value) => SIDE + ((value - first) / (last - first)) * (WIDTH - 2 * SIDE);
  const y = (value) => BOTTOM - (value / peak) * (BOTTOM - TOP);
  const edge = (k) => low + ((high - low) * k) / n;
  const area = (least, most) => {
    const from = Math.max(least, first), to = Math.min(most, last);
    const points = [[x(from), BOTTOM]];
    for (let k = 0; k < n; k += 1) {
      const a = Math.max(edge(k), from), b = Math.min(edge(k + 1), to);
      if (a < b) points.push([x(a), y(density[k])], [x(b), y(density[k])]);
    }
    points.push([x(to), BOTTOM]);
    return points.map((point) => point.map((v) => v.toFixed(2)).join(",")).join(" ");
  };
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  svg.append(
    shape("title", {}, `Posterior of ${unit}: median ${median.toFixed(decimals)}, 68% from ${q16.toFixed(decimals)} to ${q84.toFixed(decimals)}`),
    shape("polygon", { points: area(q05, q95), class: "outer" }),
    shape("polygon", { points: area(q16, q84), class: "inner" }),
    shape("polyline", { points: area(low, high), class: "curve" }),
    shape("line", { x1: x(median), x2: x(median), y1: TOP - 4, y2: BOTTOM, class: "median" }),
    shape("line", { x1: x(first), x2: x(last), y1: BOTTOM, y2: BOTTOM, class: "axis" }),
  );
  for (const [value, label] of ticks(first, last)) {
    svg.append(shape("line", { x1: x(value), x2: x(value), y1: BOTTOM, y2: BOTTOM + 4, class: "axis" }));
    svg.append(shape("text", { x: x(value), y: BOTTOM + 16, class: "tick" }, label));
  }
  svg.append(shape("text", { x: WIDTH / 2, y: BOTTOM + 31, class: "tick" }, first > low || last < high ? `${unit}   (prior: ${minus(String(low))} to ${minus(String(high))})` : unit));
  return svg;
}

export function bar(share, name) {
  const svg = shape("svg", { viewBox: "0 0 100 7", preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(shape("rect", { width: 100 * share, height: 7, class: name }));
  return svg;
}
