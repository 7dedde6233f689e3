// Runs an export's .tflite files in the browser: the preview, and the specialist where the preview is unsure.
// manifest.json says what the files take and which images exit early; nothing here knows the network.

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";

const STAGES = ["preview", "specialist"];
const NEVER = 2; // a threshold that no confidence reaches
const GUESSED = 0.9; // the threshold where the export has no rule

// ---- The export's files ----------------------------------------------------------------------------------------

// Returns a file's bytes; throws if they are not those that were exported.
async function readFile(name, facts) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} cannot be read (${response.status}); copy the whole folder again.`);
  const content = new Uint8Array(await response.arrayBuffer());
  let same = content.length === facts.bytes;
  if (same && crypto.subtle) {
    // browsers have it on https and on localhost
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
    same = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === facts.sha256;
  }
  if (!same) throw new Error(`${name} is damaged or of another export; copy the whole folder again.`);
  return content;
}

// Loads the runtime and the files: {manifest, classes, rule, stages: {preview, specialist}}.
async function openExport() {
  const response = await fetch("manifest.json");
  if (!response.ok) throw new Error(`manifest.json cannot be read (${response.status}).`);
  const manifest = await response.json();
  const labels = new TextDecoder().decode(await readFile("labels.txt", manifest.labels));
  globalThis.Module = { printErr() {} }; // LiteRT writes its log there
  await loadLiteRt("runtime/core/wasm/litert_wasm_compat_internal.js");
  const suffix = Object.keys(manifest.files).find((name) => name.endsWith("tflite")).replace(/^[^.]*\./, "");
  const stages = {};
  for (const stage of STAGES) {
    const name = `${stage}.${suffix}`;
    if (manifest.files[name]) {
      stages[stage] = await loadAndCompile(await readFile(name, manifest.files[name]), { accelerator: "wasm" });
    }
  }
  const rule = manifest.rule ?? { criterion: "probability", temperature: 1, threshold: GUESSED };
  return { manifest, suffix, classes: labels.split("\n").slice(0, -1), rule: { ...rule }, stages };
}

// ---- Pixels, as basisnet_jax/images/load.py makes them -----------------------------------------------------------

// Returns for each of `to` pixels of a line the pixels of `from` that it is made of: [index, weight, index, weight, ...].
// As OpenCV: bilinear; or by area, which is a kind of bilinear where one side of the image grows (`grows`).
function taps(from, to, byArea, grows) {
  const scale = from / to;
  return Array.from({ length: to }, (_, i) => {
    if (byArea && !grows) {
      const start = i * scale, end = Math.min(start + scale, from);
      const found = [];
      for (let j = Math.floor(start); j < Math.ceil(end - 1e-6); j++) {
        found.push(j, (Math.min(j + 1, end) - Math.max(j, start)) / (end - start));
      }
      return found;
    }
    const center = (i + 0.5) * scale - 0.5;
    const at = Math.floor(byArea ? i * scale : center);
    const ahead = i + 1 - (at + 1) / scale;
    const share = byArea ? (ahead <= 0 ? 0 : ahead - Math.floor(ahead)) : center - at;
    const inside = (j) => Math.min(Math.max(j, 0), from - 1);
    return [inside(at), 1 - share, inside(at + 1), share];
  });
}

// Resizes channel values, height x width x channels, to side x side x channels, rounded to whole numbers.
function resize(values, height, width, channels, side) {
  if (height === side && width === side) return Float32Array.from(values);
  const byArea = Math.max(height, width) >= 2 * side, grows = Math.min(height, width) < side;
  const across = taps(width, side, byArea, grows), down = taps(height, side, byArea, grows);
  const rows = new Float32Array(height * side * channels);
  for (let y = 0, at = 0; y < height; y++) {
    for (const found of across) {
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let t = 0; t < found.length; t += 2) sum += found[t + 1] * values[(y * width + found[t]) * channels + c];
        rows[at++] = sum;
      }
    }
  }
  const line = side * channels, result = new Float32Array(side * line);
  down.forEach((found, y) => {
    for (let x = 0; x < line; x++) {
      let sum = 0;
      for (let t = 0; t < found.length; t += 2) sum += found[t + 1] * rows[found[t] * line + x];
      result[y * line + x] = Math.round(sum);
    }
  });
  return result;
}

// Averages blocks of k x k, as a JPEG is decoded at 1/k of its size: [values, height, width].
function shrink(values, height, width, channels, k) {
  const h = Math.ceil(height / k), w = Math.ceil(width / k), bits = Math.log2(k);
  const result = new Float32Array(h * w * channels);
  for (let y = 0, from = 0; y < height; y++) {
    const row = (y >> bits) * w, rows = Math.min(k, height - ((y >> bits) << bits)); // fewer at the edges
    for (let x = 0; x < width; x++) {
      const to = (row + (x >> bits)) * channels, count = rows * Math.min(k, width - ((x >> bits) << bits));
      for (let c = 0; c < channels; c++) result[to + c] += values[from++] / count;
    }
  }
  return [result.map(Math.round), h, w];
}

// Rounds as Python does: halves to the even number.
function round(x) {
  const up = Math.round(x);
  return up - x === 0.5 && up % 2 ? up - 1 : up;
}

// Makes the network's pixels of an image: Float32Array of side x side x channels, 0 to 255.
// The image is {source, width, height, jpeg}: what a canvas can draw, and whether it was a JPEG file.
export function preprocess(input, { source, width, height, jpeg }) {
  const { side, channels } = input;
  let [left, top, w, h] = [0, 0, width, height];
  if (input.crop_share !== null) {
    w = h = Math.max(1, round(Math.min(width, height) * input.crop_share));
    [left, top] = [Math.floor((width - w) / 2), Math.floor((height - h) / 2)];
  }
  const reduction = (jpeg && [8, 4, 2].find((k) => Math.min(h, w) >= k * side)) || 1;
  const whole = (x) => round(x / reduction) * reduction;
  const [x0, y0, x1, y1] = [whole(left), whole(top), whole(left + w), whole(top + h)];
  [w, h] = [Math.min(x1, width) - x0, Math.min(y1, height) - y0];

  const canvas = new OffscreenCanvas(w, h);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, -x0, -y0);
  const { data } = context.getImageData(0, 0, w, h);
  let values = new Uint8Array(w * h * channels);
  for (let i = 0, to = 0; i < data.length; i += 4) {
    // OpenCV's gray, or the colors without their opacity
    if (channels === 1) values[to++] = (4899 * data[i] + 9617 * data[i + 1] + 1868 * data[i + 2] + 8192) >> 14;
    else for (let c = 0; c < 3; c++) values[to++] = data[i + c];
  }
  if (reduction > 1) [values, h, w] = shrink(values, h, w, channels, reduction);
  return resize(values, h, w, channels, side);
}

// Decodes an image file as the manifest says, upright or as it is stored: what `preprocess` takes.
export async function decode(input, file) {
  const content = new Uint8Array(await file.arrayBuffer());
  if (input.exif_orientation === "ignored") {
    // browsers turn every photograph that has EXIF data, which begins with these bytes
    const exif = [0x45, 0x78, 0x69, 0x66, 0, 0];
    const at = content.subarray(0, 2 ** 17).findIndex((_, i) => exif.every((byte, k) => content[i + k] === byte));
    if (at >= 0) content[at] = 0;
  }
  const source = await createImageBitmap(new Blob([content]), { premultiplyAlpha: "none", colorSpaceConversion: "none" });
  return { source, width: source.width, height: source.height, jpeg: content[0] === 0xff && content[1] === 0xd8 };
}

// ---- The network -------------------------------------------------------------------------------------------------

function softmax(logits, temperature = 1) {
  const largest = Math.max(...logits);
  const exponentials = Array.from(logits, (x) => Math.exp((x - largest) / temperature));
  const sum = exponentials.reduce((a, b) => a + b);
  return exponentials.map((x) => x / sum);
}

const CRITERIA = {
  probability: (p) => Math.max(...p),
  margin: (p) => { const [first, second] = p.toSorted((a, b) => b - a); return first - second; },
  entropy: (p) => 1 + p.reduce((sum, x) => sum + (x > 0 ? x * Math.log(x) : 0), 0) / Math.log(p.length),
};

// Returns how sure the preview is, from 0 to 1.
export function confidence(rule, logits) {
  return logits.length === 1 ? 1 : CRITERIA[rule.criterion](softmax(logits, rule.temperature));
}

// Runs a stage on one image: {logits, coefficients, ms}. A batch's other images are zeros.
async function run(model, values) {
  const started = performance.now();
  const inputs = {};
  for (const { name, shape } of model.getInputDetails()) {
    const batch = new Float32Array(shape.reduce((a, b) => a * b));
    batch.set(values[name]);
    inputs[name] = new Tensor(batch, Array.from(shape));
  }
  const outputs = await model.run(inputs);
  const answer = {};
  for (const { name, shape } of model.getOutputDetails()) {
    const one = shape.slice(1).reduce((a, b) => a * b);
    answer[name] = Float32Array.from(outputs[name].toTypedArray().subarray(0, one));
    outputs[name].delete();
  }
  for (const tensor of Object.values(inputs)) tensor.delete();
  return { ...answer, ms: performance.now() - started };
}

// Classifies pixels: {preview, specialist} as `run` returns them, each only where it ran, and the preview's confidence.
export async function classify({ stages, rule }, image) {
  if (!stages.preview) return { specialist: await run(stages.specialist, { image }) };
  const preview = await run(stages.preview, { image });
  const sure = confidence(rule, preview.logits);
  if (sure >= rule.threshold) return { preview, sure };
  return { preview, sure, specialist: await run(stages.specialist, { image, coefficients: preview.coefficients }) };
}

// ---- The page ----------------------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);
const percent = (x) => `${(100 * x).toFixed(1)}%`;

// Makes an element; text is shown as it is, so a class may be called anything.
function element(name, text = "", style = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  Object.assign(made.style, style);
  return made;
}

export const network = await openExport().catch((error) => {
  $("status").className = "error";
  $("status").textContent = `This page cannot run: ${error.message}`;
  throw error;
});
const { manifest, classes, rule } = network;
const { input, madds } = manifest;
let image = null; // the pixels that are shown
let next = null; // a call of `show` that waits for the one before

function describe() {
  const name = manifest.config.model.specialist.backbone;
  $("title").textContent = document.title = `${name} for ${manifest.data.name}`;
  const parts = network.stages.preview
    ? "A small preview looks first; a specialist, with kernels made for this image, where the preview is unsure."
    : manifest.frozen ? `Routing: ${manifest.frozen}.` : "One network.";
  $("about").textContent = `${classes.length} classes: ${classes.slice(0, 12).join(", ")}` +
    `${classes.length > 12 ? ", ..." : ""}. ${parts}`;
  $("seen").width = $("seen").height = input.side;
  $("seen-text").textContent = `What the network sees: ${input.side} x ${input.side}, ${input.color}; crop: ${input.crop}.`;
  $("exit").hidden = !network.stages.preview;
  $("criterion").textContent = rule.criterion === "probability" ? "largest probability" : rule.criterion;
  $("threshold").value = Math.min(rule.threshold, $("threshold").max);
  $("threshold-value").textContent = thresholdText();
  if (manifest.coefficients) showCoefficients(manifest.coefficients.flat(), manifest.coefficients.length);
  else if (!network.stages.preview) $("coefficients-section").hidden = true;
}

function thresholdText() {
  const source = manifest.rule ? "the exported rule" : "a guess; the export has no rule";
  const exported = manifest.rule?.threshold ?? GUESSED;
  const shown = rule.threshold > 1 ? "more than 1: never" : rule.threshold.toFixed(3);
  return rule.threshold === exported ? `${shown} (${source})` : shown;
}

function showPixels() {
  const pixels = new ImageData(input.side, input.side);
  for (let i = 0; i < input.side ** 2; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = image[i * input.channels + (c % input.channels)];
    pixels.data[4 * i + 3] = 255;
  }
  $("seen").getContext("2d").putImageData(pixels, 0, 0);
}

function showAnswer({ preview, specialist, sure }) {
  const last = specialist ?? preview;
  const probabilities = softmax(last.logits);
  const order = probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
  const stage = specialist ? "specialist" : "preview";
  const total = (preview?.ms ?? 0) + (specialist?.ms ?? 0);
  const reason = !preview ? "" : specialist ? ", as the preview is unsure" : " alone";
  $("answer").replaceChildren(
    element("strong", classes[order[0]]),
    `${percent(probabilities[order[0]])}, answered by the ${stage}${reason}, in ${total.toFixed(1)} ms`,
  );
  $("answer").dataset.stage = stage;

  const extra = { preview: madds.preview, specialist: madds.total - madds.preview };
  $("stages").tBodies[0].replaceChildren(...Object.entries({ preview, specialist }).map(([name, answer]) => {
    const row = element("tr");
    if (!network.stages[name]) row.hidden = true;
    const found = answer ? softmax(answer.logits) : [];
    const best = Math.max(...found);
    const cells = answer
      ? [classes[found.indexOf(best)], percent(best), answer.ms.toFixed(1), extra[name].toLocaleString("en")]
      : ["not needed", "", "", ""];
    row.append(...[name, ...cells].map((text) => element("td", text)));
    return row;
  }));
  if (preview) {
    $("confidence").value = sure;
    const reached = specialist ? "below the threshold: the specialist is asked" : "enough: the specialist is not asked";
    $("confidence-text").textContent = `It is ${sure.toFixed(3)} here, ${reached}.`;
    const vectors = network.stages.preview.getOutputDetails().find(({ name }) => name === "coefficients").shape[1];
    showCoefficients(preview.coefficients, vectors);
  }
  $("top").replaceChildren(...order.slice(0, 5).map((k) => {
    const item = element("li");
    const bar = element("div");
    bar.className = "bar";
    bar.append(element("div", "", { width: percent(probabilities[k]) }));
    item.append(element("span", classes[k]), element("span", percent(probabilities[k])), bar);
    return item;
  }));
}

function showCoefficients(values, vectors) {
  const bases = values.length / vectors;
  const largest = Math.max(1e-9, ...values);
  $("coefficients-text").textContent =
    `How the ${bases} bases of each synthesized layer are mixed ` +
    `${manifest.coefficients ? "in this network" : "for this image"}: a bar for each basis, ${largest.toFixed(2)} at most.`;
  $("coefficients").replaceChildren(...Array.from({ length: vectors }, (_, l) => {
    const some = Array.from(values.slice(l * bases, (l + 1) * bases));
    const vector = element("div");
    vector.className = "vector";
    const bars = element("div");
    bars.className = "bars";
    bars.role = "img";
    bars.ariaLabel = `Coefficients ${l + 1}: ${some.map((x) => x.toFixed(2)).join(", ")}`;
    bars.title = bars.ariaLabel;
    bars.append(...some.map((x) => element("div", "", { height: percent(Math.max(x, 0) / largest) })));
    vector.append(bars, element("span", `${l + 1}`));
    return vector;
  }));
}

// Shows the answer on the pixels in `image`; of calls that come while one is at work, only the last is done.
let working = Promise.resolve();
function update() {
  if (next) return next;
  next = working.then(async () => {
    next = null;
    if (image) showAnswer(await classify(network, image));
    document.documentElement.dataset.answers = 1 + Number(document.documentElement.dataset.answers ?? 0);
  });
  working = next.catch(tell);
  return working;
}

function show(picture) {
  image = preprocess(input, picture);
  showPixels();
  return update();
}

function tell(error) {
  $("status").className = error ? "error" : "";
  $("status").textContent = error ? error.message : "";
}

// The paper: strokes by pointer or keyboard, or an image.

const paper = $("paper"), pen = paper.getContext("2d", { willReadFrequently: true });
const SIDE = paper.width, WIDTH = SIDE / 10;
let last = null; // where the stroke is
let keyboard = { x: SIDE / 2, y: SIDE / 2, down: false };
let dark = false; // ink on paper; data sets of glyphs are of both kinds

function clear() {
  stopCamera();
  tell();
  pen.fillStyle = dark ? "#fff" : "#000";
  pen.fillRect(0, 0, SIDE, SIDE);
}

function stroke(x, y) {
  pen.strokeStyle = dark ? "#000" : "#fff";
  pen.lineWidth = WIDTH;
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(...(last ?? [x, y]));
  pen.lineTo(x, y);
  pen.stroke();
  last = [x, y];
  return show({ source: paper, width: SIDE, height: SIDE });
}

function pointer(event) {
  const box = paper.getBoundingClientRect();
  return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function onKey(event) {
  const move = MOVES[event.key];
  if (!move && event.key !== " ") return;
  event.preventDefault();
  if (move) {
    const inside = (x) => Math.min(Math.max(x, 0), SIDE);
    keyboard.x = inside(keyboard.x + (move[0] * SIDE) / 20);
    keyboard.y = inside(keyboard.y + (move[1] * SIDE) / 20);
  } else keyboard.down = !keyboard.down;
  if (keyboard.down) stroke(keyboard.x, keyboard.y);
  else last = null;
  $("paper-help").textContent =
    `The pen is ${keyboard.down ? "down" : "up"}, ${percent(keyboard.x / SIDE)} from the left and ` +
    `${percent(keyboard.y / SIDE)} from the top. The space bar ${keyboard.down ? "lifts" : "lowers"} it.`;
}

// Shows an image file on the paper, and its answer.
async function openFile(file) {
  stopCamera();
  tell();
  let picture;
  try {
    picture = await decode(input, file);
  } catch {
    return tell(new Error(`${file.name} is not an image that this browser reads.`));
  }
  const scale = SIDE / Math.max(picture.width, picture.height);
  const [w, h] = [picture.width * scale, picture.height * scale];
  pen.clearRect(0, 0, SIDE, SIDE);
  pen.drawImage(picture.source, (SIDE - w) / 2, (SIDE - h) / 2, w, h);
  return show(picture);
}

// The camera, frame by frame.

const video = $("video");

function stopCamera() {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  video.hidden = true;
  paper.hidden = false;
  $("camera").ariaPressed = "false";
  $("answer").ariaLive = "polite";
}

async function startCamera() {
  tell();
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await video.play();
  } catch (error) {
    const reason = navigator.mediaDevices ? error.message : "browsers allow it on https and on localhost alone";
    stopCamera();
    return tell(new Error(`There is no camera (${reason}).`));
  }
  paper.hidden = true;
  video.hidden = false;
  $("camera").ariaPressed = "true";
  $("answer").ariaLive = "off"; // nobody can listen to an answer for each frame
  while (video.srcObject) {
    await show({ source: video, width: video.videoWidth, height: video.videoHeight });
    await new Promise(requestAnimationFrame);
  }
}

function listen() {
  paper.addEventListener("pointerdown", (event) => {
    paper.setPointerCapture(event.pointerId);
    last = null;
    stroke(...pointer(event));
  });
  paper.addEventListener("pointermove", (event) => event.buttons && last && stroke(...pointer(event)));
  paper.addEventListener("pointerup", () => (last = null));
  paper.addEventListener("keydown", onKey);
  $("clear").addEventListener("click", () => { clear(); last = null; });
  $("ink").addEventListener("click", () => {
    dark = !dark;
    $("ink").ariaPressed = String(dark);
    clear();
  });
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    if ($("file").files[0]) openFile($("file").files[0]);
    $("file").value = "";
  });
  $("camera").addEventListener("click", () => (video.srcObject ? stopCamera() : startCamera()));
  $("threshold").addEventListener("input", () => {
    const value = Number($("threshold").value);
    rule.threshold = value > 1 ? NEVER : value;
    $("threshold-value").textContent = thresholdText();
    update();
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dropping", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files[0]) openFile(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => event.clipboardData.files[0] && openFile(event.clipboardData.files[0]));
}

for (const model of Object.values(network.stages)) {
  // the first run of a stage is slow, and its time says nothing
  const zeros = model.getInputDetails().map(({ name, shape }) => [name, new Float32Array(shape.reduce((a, b) => a * b))]);
  await run(model, Object.fromEntries(zeros));
}
describe();
clear();
listen();
tell();
$("main").hidden = false;
document.documentElement.dataset.ready = "";
