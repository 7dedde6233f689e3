// Classifies pixels in two stages with an export's .onnx files.
//
// In Node.js: npm install onnxruntime-node; node two_stage_onnx.mjs runs/digits/export pixels.raw
// In a browser: import * as ort from "onnxruntime-web", and give TwoStage what `fetch` returned.
// pixels.raw has one byte for each channel of each pixel, image after image, row after row.

function softmax(logits) {
  const largest = Math.max(...logits);
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = exponentials.reduce((a, b) => a + b, 0);
  return exponentials.map((value) => value / sum);
}

/** Returns how sure the preview is, from 0 to 1, as manifest.json's rule measures it. */
export function confidence(logits, { criterion, temperature }) {
  const probabilities = softmax(Array.from(logits, (logit) => logit / temperature)).sort((a, b) => b - a);
  if (probabilities.length === 1) return 1;
  if (criterion === "margin") return probabilities[0] - probabilities[1];
  if (criterion === "entropy") {
    const terms = probabilities.map((p) => (p > 0 ? p * Math.log(p) : 0));
    return 1 + terms.reduce((a, b) => a + b, 0) / Math.log(probabilities.length);
  }
  return probabilities[0];
}

/** The preview answers if it is sure enough, else the specialist does. */
export class TwoStage {
  /**
   * Loads an export that has a preview and a rule.
   *
   * ort: the module onnxruntime-node or onnxruntime-web; manifest: the parsed manifest.json; labels: the text of
   * labels.txt; preview, specialist: the .onnx files' bytes as Uint8Array.
   */
  static async load(ort, { manifest, labels, preview, specialist }) {
    const made = new TwoStage();
    made.ort = ort;
    made.rule = manifest.rule;
    made.shape = [1, manifest.input.side, manifest.input.side, manifest.input.channels];
    made.classes = labels.replace(/\n$/, "").split("\n");
    made.preview = await ort.InferenceSession.create(preview);
    made.specialist = await ort.InferenceSession.create(specialist);
    return made;
  }

  /** Classifies one image: Uint8Array of side * side * channels values, cropped and resized as manifest.json says. */
  async classify(pixels) {
    const image = new this.ort.Tensor("float32", Float32Array.from(pixels), this.shape);
    const { logits: previewLogits, coefficients } = await this.preview.run({ image });
    const early = confidence(previewLogits.data, this.rule) >= this.rule.threshold;
    const { logits } = early ? { logits: previewLogits } : await this.specialist.run({ image, coefficients });
    const probabilities = softmax(logits.data);
    const probability = Math.max(...probabilities);
    return { label: this.classes[probabilities.indexOf(probability)], probability, early };
  }
}

async function main(folder, pixelsFile, runtime = "onnxruntime-node") {
  const { readFile } = await import("node:fs/promises");
  const ort = await import(runtime);
  const [manifest, labels] = await Promise.all(["manifest.json", "labels.txt"].map((x) => readFile(`${folder}/${x}`, "utf8")));
  const [preview, specialist] = await Promise.all(["preview", "specialist"].map((x) => readFile(`${folder}/${x}.onnx`)));
  const twoStage = await TwoStage.load(ort, { manifest: JSON.parse(manifest), labels, preview, specialist });
  const pixels = await readFile(pixelsFile);
  const size = twoStage.shape.reduce((a, b) => a * b);
  for (let start = 0; start < pixels.length; start += size) {
    const { label, probability, early } = await twoStage.classify(pixels.subarray(start, start + size));
    console.log(`${label}  ${probability.toFixed(4)}  ${early ? "preview" : "specialist"}`);
  }
}

if (globalThis.process?.argv[1]?.endsWith("two_stage_onnx.mjs")) await main(...process.argv.slice(2));
