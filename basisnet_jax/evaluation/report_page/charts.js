// Draws the charts by Plotly, and begins everything.

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const chartText = (name) => name.replace(/[&<>$]/g, (letter) => `&#${letter.charCodeAt(0)};`); // no tags, no formulas
const axis = (more) =>
  ({ gridcolor: color("line"), linecolor: color("line"), zeroline: false, automargin: true, ...more });
const title = (text) => ({ text, standoff: 8 });

function plot(place, words, traces, layout) {
  place.setAttribute("aria-label", words);
  const touched = matchMedia("(pointer: coarse)").matches; // there a finger scrolls the page
  Plotly.react(place, traces, {
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { family: "system-ui, sans-serif", size: 14, color: color("text") },
    hoverlabel: { bgcolor: color("panel"), bordercolor: color("text"), font: { color: color("text") } },
    margin: { l: 10, r: 10, t: 30, b: 10 },
    legend: { orientation: "h", x: 0, xanchor: "left", y: -0.22, yanchor: "top" },
    dragmode: touched ? false : "zoom",
    ...layout,
  }, {
    responsive: true,
    displaylogo: false,
    displayModeBar: touched ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
  });
}

function points(name, x, y, symbol, fill, size, more = {}) {
  return {
    name: chartText(name), x, y, type: "scatter", mode: "markers",
    marker: { symbol, size, color: color(fill), line: { color: color("text"), width: 1 } },
    hovertemplate: "top-1 %{y:.4f}<br>%{x:.4s} multiply-adds",
    ...more,
  };
}

function exitTraces({ criterion, temperature, madds, top1, chosen }) {
  const name = `early exits by ${criterion} at temperature ${temperature.toFixed(3)}`;
  const ring = { symbol: "circle-open", size: 20, color: color("two"), line: { width: 4 } };
  return [
    points(name, madds, top1, "", "one", 0, { mode: "lines", line: { color: color("one"), width: 2 } }),
    points("at the slider", [madds[shown.stop]], [top1[shown.stop]], "", "two", 0, { marker: ring }),
    ...Object.entries(chosen).map(([setting, stop]) =>
      points(`chosen by ${setting}`, [madds[stop]], [top1[stop]], "star", "two", 13)),
    points("the preview alone", madds.slice(-1), top1.slice(-1), "triangle-down", "one", 11),
  ];
}

function accuracyChart() {
  const { whole: [own], compared, published } = data.networks;
  const symbols = ["circle", "pentagon", "hexagon", "cross", "bowtie", "hourglass"];
  const traces = [
    ...(data.exits ? exitTraces(data.exits[shown.criterion]) : []),
    points("both stages for every image", [own.madds], [own.top1], "square", "one", 10),
    ...compared.map(({ name, madds, top1 }, number) =>
      points(name, [madds], [top1], symbols[number % symbols.length], "three", 11)),
  ];
  if (published.length) {
    const of = (field) => published.map((network) => network[field]);
    const text = of("name").map(chartText);
    const cross = points("published networks", of("madds"), of("top1"), "x-thin", "faint", 9, { text });
    cross.marker.line = { color: color("faint"), width: 2 };
    cross.hovertemplate = `%{text}<br>${cross.hovertemplate}`;
    traces.push(cross);
  }
  plot(find("accuracy-chart"), "Top-1 over average multiply-adds; the figures above are those of the slider.", traces, {
    xaxis: axis({ title: title("multiply-adds per image, average"), tickformat: "~s" }),
    yaxis: axis({ title: title("top-1") }),
  });
  accuracyChart.drawn = true;
}

function addChart(parent, heading) {
  const place = make("div", { className: "chart", role: "img" });
  find(parent).append(make("figure", {}, make("figcaption", {}, heading), place));
  return place;
}

function reliabilityChart([stage, { ece, count, confidence, accuracy }]) {
  const place = addChart("reliability-charts", `${stage}: ECE ${four(ece)}`);
  const filled = [...count.keys()].filter((bin) => count[bin] > 0);
  const of = (values) => filled.map((bin) => values[bin]);
  const width = 1 / count.length;
  const x = filled.map((bin) => (bin + 0.5) * width);
  return () => {
    const bars = { type: "bar", x, width, marker: { color: color("one"), line: { color: color("page"), width: 1 } } };
    const dot = { color: color("two"), size: 8, line: { color: color("text"), width: 1 } };
    const dots = { type: "scatter", mode: "markers", cliponaxis: false, marker: dot };
    const line = { type: "scatter", mode: "lines", line: { dash: "dash", color: color("faint") } };
    plot(place, `Top-1 of the ${stage} over its confidence, and the number of images, in ${count.length} bins.`, [
      { name: "top-1", ...bars, y: of(accuracy) },
      { name: "as often right as sure", ...line, x: [0, 1], y: [0, 1] },
      { name: "mean confidence", ...dots, x: of(confidence), y: of(accuracy) },
      { name: "images", ...bars, y: of(count), yaxis: "y2", showlegend: false },
    ], {
      xaxis: axis({ range: [0, 1], title: title("confidence: the largest probability"), anchor: "y2" }),
      yaxis: axis({ range: [0, 1.05], domain: [0.4, 1], title: title("top-1") }),
      yaxis2: axis({ type: "log", domain: [0, 0.3], title: title("images"), dtick: 1 }),
    });
  };
}

function curvesChart({ title: heading, lines }) {
  const place = addChart("curves-charts", heading);
  const styles = {
    training: ["lines", "one", "solid", "circle"],
    evaluation: ["lines+markers", "two", "solid", "circle"],
    "evaluation, the preview alone": ["lines+markers", "three", "dash", "triangle-up"],
  };
  return () => plot(place, `${heading}, over steps`, lines.map(({ label, steps, values }) => {
    const [mode, name, dash, symbol] = styles[label];
    return {
      name: label, type: "scatter", x: steps, y: values, showlegend: true,
      mode: values.length < 3 ? "lines+markers" : mode, // a line needs two points
      line: { color: color(name), dash }, marker: { symbol, size: 7 },
    };
  }), { xaxis: axis({ title: title("step"), tickformat: "~s" }), yaxis: axis({}) });
}

async function loadPlotly() {
  const unpacked = new Blob([bytes(find("plotly").textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(make("script", { textContent: await new Response(unpacked).text() }));
}

let canDraw = false;
function draw(...charts) {
  if (canDraw) for (const chart of charts) chart();
}

async function show() {
  showMetrics();
  if (data.exits) {
    showExits();
    showMended();
    showCoefficients();
  }
  find("curves").hidden = data.curves.length === 0;
  for (const section of document.querySelectorAll("section:not([hidden])")) {
    const heading = section.querySelector("h2").textContent;
    document.querySelector("nav").append(make("a", { href: `#${section.id}` }, heading));
  }
  try {
    await loadPlotly();
    canDraw = true;
  } catch (error) {
    console.error(error);
    find("no-charts").hidden = false;
  }
  const bars = Object.entries(data.reliability).map(reliabilityChart);
  const charts = [accuracyChart, ...bars, ...data.curves.map(curvesChart)];
  draw(...charts);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(...charts));
  document.documentElement.dataset.shown = "true";
}

show();
