// Small charts by uPlot, in the page's colours, as wide as what holds them.

import { el } from "./dom.js";

// As the page shows it now, light or dark.
function color(node, name) {
  node.style.color = `var(${name})`;
  const shown = getComputedStyle(node).color;
  node.style.color = "";
  return shown;
}

// `options`: label, format(value), stepped, axes. Returns {node, show(times or versions, values)}.
export function chart(height, signal, { label, format, stepped = false, axes = false, time = true }) {
  const node = el("div", { class: "chart", role: "img", "aria-label": label });
  let plot = null;
  let data = [[], []];

  const draw = () => {
    plot?.destroy();
    plot = null;
    if (!node.isConnected || !node.clientWidth || typeof uPlot === "undefined") return;
    plot = new uPlot(settings(node.clientWidth), data, node);
  };
  const settings = (width) => {
    const line = color(node, "--accent");
    const ink = color(node, "--muted");
    const axis = { stroke: ink, font: "12px Inter, system-ui, sans-serif", grid: { stroke: color(node, "--line"), width: 1 }, ticks: { show: false } };
    return {
      width,
      height,
      padding: axes ? [8, 22, 0, 0] : [4, 0, 4, 0],
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time }, y: { range: (_, low, high) => [0, Math.max(high ?? 0, 1) * 1.15] } },
      axes: axes
        ? [{ ...axis, space: 70, values: time ? undefined : (_, values) => values.map((v) => (Number.isInteger(v) ? `v${v}` : "")) },
           { ...axis, size: 48, values: (_, values) => values.map(format) }]
        : [{ show: false }, { show: false }],
      series: [{}, {
        stroke: line,
        width: 2,
        fill: `color-mix(in srgb, ${line} 16%, transparent)`,
        points: { show: false },
        ...(stepped && { paths: uPlot.paths.stepped({ align: 1 }) }),
      }],
    };
  };

  const sized = new ResizeObserver(() => (plot && node.clientWidth ? plot.setSize({ width: node.clientWidth, height }) : draw()));
  sized.observe(node);
  addEventListener("shoal-theme", draw, { signal });
  signal.addEventListener("abort", () => { sized.disconnect(); plot?.destroy(); }, { once: true });
  return {
    node,
    show(xs, ys) {
      data = [xs, ys];
      if (plot) plot.setData(data);
      else draw();
    },
  };
}
