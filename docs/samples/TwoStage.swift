// Classifies pixels in two stages with an export's .tflite files, by LiteRT's CompiledModel.
//
// The app depends on the Swift package LiteRT (github.com/google-ai-edge/LiteRT, iOS 15 or macOS 12 and later). The
// export's folder is in the app's bundle.

import Foundation
import LiteRT

/// When the preview is sure enough to answer alone; manifest.json's rule.
public struct ExitRule: Decodable {
  public let criterion: String
  public let temperature: Double
  public let threshold: Double

  /// Returns how sure the preview is, from 0 to 1.
  public func confidence(_ logits: [Float]) -> Double {
    let probabilities = softmax(logits, temperature: temperature).sorted(by: >)
    if probabilities.count == 1 { return 1 }
    switch criterion {
    case "margin":
      return probabilities[0] - probabilities[1]
    case "entropy":
      let terms = probabilities.map { $0 > 0 ? $0 * log($0) : 0 }
      return 1 + terms.reduce(0, +) / log(Double(probabilities.count))
    default:
      return probabilities[0]
    }
  }
}

func softmax(_ logits: [Float], temperature: Double = 1) -> [Double] {
  let largest = Double(logits.max() ?? 0)
  let exponentials = logits.map { exp((Double($0) - largest) / temperature) }
  let sum = exponentials.reduce(0, +)
  return exponentials.map { $0 / sum }
}

/// A .tflite file that runs its one signature; its inputs and outputs have names.
private final class Stage {
  private let model: CompiledModel
  private let inputs: [TensorBuffer]
  private let outputs: [TensorBuffer]
  private let inputNames: [String]
  private let outputNames: [String]

  init(_ file: URL, environment: Environment, options: Options) throws {
    let model = try CompiledModel(filePath: file.path, environment: environment, options: options)
    inputs = try model.createInputBuffers()
    outputs = try model.createOutputBuffers()
    inputNames = try inputs.indices.map { try model.inputName(inputIndex: $0) }
    outputNames = try outputs.indices.map { try model.outputName(outputIndex: $0) }
    self.model = model
  }

  func run(_ values: [String: [Float]]) throws -> [String: [Float]] {
    for (name, buffer) in zip(inputNames, inputs) {
      try buffer.write(values[name] ?? [])
    }
    try model.run(inputs: inputs, outputs: outputs)
    var results: [String: [Float]] = [:]
    for (name, buffer) in zip(outputNames, outputs) {
      results[name] = try buffer.read()
    }
    return results
  }
}

/// The preview answers if it is sure enough, else the specialist does. For one thread at a time.
public final class TwoStage {
  public struct Answer {
    public let label: String
    public let probability: Double
    public let exitedEarly: Bool
  }

  private struct Manifest: Decodable {
    let rule: ExitRule
  }

  private let rule: ExitRule
  private let classes: [String]
  private let preview: Stage
  private let specialist: Stage

  /// Loads an export that has a preview and a rule.
  ///
  /// - Parameters:
  ///   - folder: the export's folder.
  ///   - kind: of its files, such as "int8_weights.tflite".
  ///   - accelerators: with `.gpu`, compare the answers first (docs/guides/phone-code.md).
  public init(folder: URL, kind: String = "tflite", accelerators: Set<Accelerator> = [.cpu]) throws {
    let json = try Data(contentsOf: folder.appendingPathComponent("manifest.json"))
    rule = try JSONDecoder().decode(Manifest.self, from: json).rule
    let labels = try String(contentsOf: folder.appendingPathComponent("labels.txt"), encoding: .utf8)
    classes = Array(labels.components(separatedBy: "\n").dropLast())
    let environment = try Environment()
    let options = try Options()
    try options.setHardwareAccelerators(accelerators)
    func stage(_ name: String) throws -> Stage {
      try Stage(folder.appendingPathComponent("\(name).\(kind)"), environment: environment, options: options)
    }
    preview = try stage("preview")
    specialist = try stage("specialist")
  }

  /// Classifies one image: side * side * channels values from 0 to 255, cropped and resized as manifest.json says.
  public func classify(_ pixels: [Float]) throws -> Answer {
    let first = try preview.run(["image": pixels])
    guard let previewLogits = first["logits"], let coefficients = first["coefficients"] else {
      throw LiteRtError.notFound
    }
    if rule.confidence(previewLogits) >= rule.threshold {
      return answer(previewLogits, exitedEarly: true)
    }
    let second = try specialist.run(["image": pixels, "coefficients": coefficients])
    guard let logits = second["logits"] else { throw LiteRtError.notFound }
    return answer(logits, exitedEarly: false)
  }

  private func answer(_ logits: [Float], exitedEarly: Bool) -> Answer {
    let probabilities = softmax(logits)
    let label = probabilities.indices.max { probabilities[$0] < probabilities[$1] } ?? 0
    return Answer(label: classes[label], probability: probabilities[label], exitedEarly: exitedEarly)
  }
}
