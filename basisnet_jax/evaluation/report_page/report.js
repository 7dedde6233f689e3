"use strict";
// Shows the evaluation in the JSON block `data`: metrics, the slider, images and confusions. Text enters the page as
// text, never as HTML. All figures are in the data: this script looks them up.

const find = (id) => document.getElementById(id);
const data = JSON.parse(find("data").textContent);
const { results } = data;
const whole = (x) => Math.round(x).toLocaleString("en-US");
const percent = (x) => `${(100 * x).toFixed(1)}%`;
const four = (x) => x.toFixed(4);

function bytes(base64) {
  const letters = atob(base64);
  const found = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at += 1) found[at] = letters.charCodeAt(at); // `from` takes ten times as long
  return found;
}

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// A name from outside: its letters, also those that are read from right to left, move nothing else.
function bdi(name) {
  return make("bdi", { textContent: name, title: name });
}

function className(index) {
  return bdi(data.classes[index]);
}

function fillTable(table, head, rows) {
  table.replaceChildren(
    make("thead", {}, make("tr", {}, ...head.map((cell) => make("th", { scope: "col" }, cell)))),
    make("tbody", {}, ...rows.map(([first, ...others]) =>
      make("tr", {}, make("th", { scope: "row" }, first), ...others.map((cell) => make("td", {}, cell))))),
  );
}

// `options` are pairs of a value and its words.
function fillSelect(select, options) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
}

// ---- Metrics

function showMetrics() {
  const { config, count, resolution, step } = results;
  find("what").textContent = `${config.data.name} ${config.data.eval_split}: ${whole(count)} images of ` +
    `${resolution} × ${resolution} pixels. Checkpoint of step ${whole(step)}.`;
  const stages = { specialist: results.specialist, preview: results.preview };
  for (const [name, found] of Object.entries(results.ablations)) stages[`specialist, coefficients: ${name}`] = found;
  const rows = Object.entries(stages).filter(([, metrics]) => metrics);
  const names = { top1: "top-1", top5: "top-5", loss: "loss", ece: "ECE" };
  fillTable(find("metrics-table"), ["", ...Object.values(names)],
    rows.map(([stage, metrics]) => [stage, ...Object.keys(names).map((name) => four(metrics[name]))]));
  fillTable(find("versions-table"), ["package", "version"], Object.entries(results.versions));
  find("config").textContent = JSON.stringify(config, null, 2);
}

// ---- Early exits: the slider

const shown = { criterion: data.in_use, stop: 0 }; // what the slider shows

function showExits() {
  for (const id of ["exits", "changes", "images"]) find(id).hidden = false;
  fillSelect(find("criterion"), data.exits.map(({ criterion, temperature }, number) =>
    [number, `${criterion} at temperature ${temperature.toFixed(3)}${number === data.in_use ? " (in use)" : ""}`]));
  find("criterion").value = data.in_use;
  find("criterion").addEventListener("change", (event) => chooseCriterion(Number(event.target.value)));
  find("threshold").addEventListener("input", (event) => moveTo(Number(event.target.value)));
  for (const group of ["first", "last", "specialist"]) find(group).append(...data.groups[group].map(tile));
  const many = data.exits[data.in_use].lost.at(-1);
  find("specialist-words").textContent = `${whole(many)} of the ${whole(results.reported_half.count)} images for ` +
    `reporting; ${data.groups.specialist.length} of them are here, from the first that exits to the last.`;
  chooseCriterion(data.in_use);
}

function chooseCriterion(number) {
  shown.criterion = number;
  const { chosen, threshold } = data.exits[number];
  find("threshold").max = threshold.length - 1;
  find("chosen").replaceChildren(...Object.entries(chosen).map(([setting, stop]) => {
    const button = make("button", { type: "button" }, `★ ${setting} = ${results.config.eval[setting]}`);
    button.addEventListener("click", () => moveTo(stop));
    return button;
  }));
  moveTo(Object.values(chosen).at(-1));
  draw(accuracyChart);
}

function moveTo(stop) {
  shown.stop = stop;
  const at = data.exits[shown.criterion];
  const figures = {
    threshold: at.threshold[stop] > 1 ? "none exits" : String(Number(at.threshold[stop].toPrecision(6))),
    "exit-rate": percent(at.exit_rate[stop]),
    top1: four(at.top1[stop]),
    madds: whole(at.madds[stop]),
  };
  for (const [name, text] of Object.entries(figures)) find(`at-${name}`).textContent = text;
  find("threshold").value = stop;
  find("threshold").setAttribute("aria-valuetext", `threshold ${figures.threshold}: ${figures["exit-rate"]} exit, ` +
    `top-1 ${figures.top1}, ${figures.madds} multiply-adds`);
  if (accuracyChart.drawn) Plotly.restyle(find("accuracy-chart"), { x: [[at.madds[stop]]], y: [[at.top1[stop]]] }, [1]);
  showChanged(at.lost[stop], at.gained[stop]);
  for (const figure of document.querySelectorAll(".pictures figure")) markAnswer(figure);
}

const exitsAt = (index) => data.pictures[index].exits_at[shown.criterion];

function showChanged(lost, gained) {
  const { specialist, preview } = data.groups;
  const changed = [...specialist, ...preview].filter((index) => exitsAt(index) <= shown.stop);
  changed.sort((a, b) => exitsAt(b) - exitsAt(a));
  find("changed-words").textContent = `Only because they exit, ${whole(lost)} of ` +
    `${whole(results.reported_half.count)} images are answered wrongly, and ${whole(gained)} rightly.` +
    (changed.length ? ` ${changed.length} of these ${whole(lost + gained)} are here, the last to exit first.` : "");
  find("changed").replaceChildren(...changed.map(tile));
}

function tile(index) {
  const { uri, label, answers } = data.pictures[index];
  const line = (stage) => {
    const { answer, right } = answers[stage];
    const said = right ? [] : [": ", answer === label ? "a tie" : className(answer)];
    return make("span", { className: right ? stage : `${stage} wrong` }, right ? "✓ " : "✗ ", stage, ...said);
  };
  const heading = make("span", { className: "class" }, className(label));
  const caption = make("figcaption", {}, heading, line("preview"), line("specialist"));
  const figure = make("figure", {}, make("img", { src: uri, alt: `image ${index}`, width: 96, height: 96 }), caption);
  figure.dataset.index = index;
  return figure;
}

function markAnswer(figure) {
  const answering = exitsAt(figure.dataset.index) <= shown.stop ? "preview" : "specialist";
  for (const stage of ["preview", "specialist"]) {
    const line = figure.querySelector(`.${stage}`);
    line.classList.toggle("answers", stage === answering);
    line.ariaCurrent = stage === answering ? "true" : null;
  }
}

// ---- Confusions

function showMended() {
  const { count, pairs } = data.mended;
  find("mended").hidden = count === 0;
  const listed = pairs.length < count ? `; the ${pairs.length} most mended are listed` : "";
  find("mended-words").textContent = `${whole(count)} pairs of classes are confused more often by the preview than ` +
    `by the specialist${listed}. The numbers count images of either class that a stage takes for the other.`;
  const most = Math.max(...pairs.map(({ preview }) => preview));
  const bar = (value, kind) => {
    const drawn = make("span", { className: `bar ${kind}` });
    drawn.style.width = `${(5 * value) / most}rem`;
    return make("span", {}, drawn, ` ${value}`);
  };
  const rows = pairs.map(({ one, other, preview, specialist }) =>
    [make("span", {}, className(one), " and ", className(other)), bar(preview, "first"), bar(specialist, "second")]);
  fillTable(find("mended-table"), ["classes", "preview", "specialist"], rows);
}
