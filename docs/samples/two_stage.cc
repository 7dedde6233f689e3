// Classifies pixels in two stages with an export's .tflite files, by LiteRT's C API (CompiledModel), on the CPU.
//
//   two_stage PREVIEW.tflite SPECIALIST.tflite labels.txt CRITERION TEMPERATURE THRESHOLD pixels.raw
//
// CRITERION, TEMPERATURE and THRESHOLD are those of manifest.json's rule. pixels.raw has one byte for each channel of
// each pixel, image after image, row after row.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "litert/c/litert_common.h"
#include "litert/c/litert_compiled_model.h"
#include "litert/c/litert_environment.h"
#include "litert/c/litert_model.h"
#include "litert/c/litert_options.h"
#include "litert/c/litert_tensor_buffer.h"

namespace {

void Check(LiteRtStatus status, const std::string& what) {
  if (status == kLiteRtStatusOk) return;
  std::fprintf(stderr, "error: %s: LiteRT's status is %d\n", what.c_str(), status);
  std::exit(1);
}

// A .tflite file that runs its one signature; its inputs and outputs have names.
class Stage {
 public:
  Stage(LiteRtEnvironment environment, const std::string& path) : path_(path) {
    LiteRtOptions options;
    Check(LiteRtCreateModelFromFile(environment, path.c_str(), &model_), path);
    Check(LiteRtCreateOptions(&options), path);
    Check(LiteRtSetOptionsHardwareAccelerators(options, kLiteRtHwAcceleratorCpu), path);
    Check(LiteRtCreateCompiledModel(environment, model_, options, &compiled_), path);
    LiteRtDestroyOptions(options);

    LiteRtSignature signature;
    LiteRtParamIndex inputs, outputs;
    Check(LiteRtGetModelSignature(model_, 0, &signature), path);
    Check(LiteRtGetNumSignatureInputs(signature, &inputs), path);
    Check(LiteRtGetNumSignatureOutputs(signature, &outputs), path);
    const char* name;
    LiteRtTensor tensor;
    LiteRtTensorBufferRequirements requirements;
    for (LiteRtParamIndex i = 0; i < inputs; ++i) {
      Check(LiteRtGetSignatureInputName(signature, i, &name), path);
      Check(LiteRtGetSignatureInputTensorByIndex(signature, i, &tensor), path);
      Check(LiteRtGetCompiledModelInputBufferRequirements(compiled_, 0, i, &requirements), path);
      inputs_.push_back(buffers_[name] = NewBuffer(environment, tensor, requirements));
    }
    for (LiteRtParamIndex i = 0; i < outputs; ++i) {
      Check(LiteRtGetSignatureOutputName(signature, i, &name), path);
      Check(LiteRtGetSignatureOutputTensorByIndex(signature, i, &tensor), path);
      Check(LiteRtGetCompiledModelOutputBufferRequirements(compiled_, 0, i, &requirements), path);
      outputs_.push_back(buffers_[name] = NewBuffer(environment, tensor, requirements));
    }
  }

  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  ~Stage() {
    for (auto& [_, buffer] : buffers_) LiteRtDestroyTensorBuffer(buffer);
    LiteRtDestroyCompiledModel(compiled_);
    LiteRtDestroyModel(model_);
  }

  size_t Size(const std::string& name) const {
    size_t bytes;
    Check(LiteRtGetTensorBufferPackedSize(buffers_.at(name), &bytes), path_);
    return bytes / sizeof(float);
  }

  void Write(const std::string& name, const std::vector<float>& values) {
    void* address;
    Check(LiteRtLockTensorBuffer(buffers_.at(name), &address, kLiteRtTensorBufferLockModeWrite), path_);
    std::memcpy(address, values.data(), values.size() * sizeof(float));
    Check(LiteRtUnlockTensorBuffer(buffers_.at(name)), path_);
  }

  std::vector<float> Read(const std::string& name) const {
    void* address;
    Check(LiteRtLockTensorBuffer(buffers_.at(name), &address, kLiteRtTensorBufferLockModeRead), path_);
    const float* begin = static_cast<const float*>(address);
    std::vector<float> values(begin, begin + Size(name));
    Check(LiteRtUnlockTensorBuffer(buffers_.at(name)), path_);
    return values;
  }

  void Run() {
    Check(LiteRtRunCompiledModel(compiled_, 0, inputs_.size(), inputs_.data(), outputs_.size(), outputs_.data()),
          path_);
  }

 private:
  LiteRtTensorBuffer NewBuffer(LiteRtEnvironment environment, LiteRtTensor tensor,
                               LiteRtTensorBufferRequirements requirements) const {
    LiteRtRankedTensorType type;
    LiteRtTensorBuffer buffer;
    Check(LiteRtGetRankedTensorType(tensor, &type), path_);
    Check(LiteRtCreateManagedTensorBufferFromRequirements(environment, &type, requirements, &buffer), path_);
    return buffer;
  }

  std::string path_;
  LiteRtModel model_;
  LiteRtCompiledModel compiled_;
  std::map<std::string, LiteRtTensorBuffer> buffers_;
  std::vector<LiteRtTensorBuffer> inputs_, outputs_;  // in the signature's order
};

std::vector<double> Softmax(const std::vector<float>& logits, double temperature = 1) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> probabilities;
  double sum = 0;
  for (float logit : logits) sum += probabilities.emplace_back(std::exp((logit - largest) / temperature));
  for (double& probability : probabilities) probability /= sum;
  return probabilities;
}

// Returns how sure the preview is, from 0 to 1, as manifest.json's rule measures it.
double Confidence(const std::vector<float>& logits, const std::string& criterion, double temperature) {
  std::vector<double> probabilities = Softmax(logits, temperature);
  std::sort(probabilities.rbegin(), probabilities.rend());
  if (probabilities.size() == 1) return 1;
  if (criterion == "margin") return probabilities[0] - probabilities[1];
  if (criterion == "entropy") {
    double sum = 0;
    for (double p : probabilities) sum += p > 0 ? p * std::log(p) : 0;
    return 1 + sum / std::log(static_cast<double>(probabilities.size()));
  }
  return probabilities[0];
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 8) {
    std::fprintf(stderr, "usage: %s PREVIEW SPECIALIST labels.txt CRITERION TEMPERATURE THRESHOLD pixels.raw\n", argv[0]);
    return 2;
  }
  const std::string criterion = argv[4];
  const double temperature = std::atof(argv[5]), threshold = std::atof(argv[6]);
  std::vector<std::string> classes;
  std::ifstream labels(argv[3]);
  for (std::string line; std::getline(labels, line);) classes.push_back(line);

  LiteRtEnvironment environment;
  Check(LiteRtCreateEnvironment(0, nullptr, &environment), "the environment");
  {
    Stage preview(environment, argv[1]), specialist(environment, argv[2]);
    std::ifstream file(argv[7], std::ios::binary);
    const std::vector<uint8_t> pixels((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const size_t size = preview.Size("image");
    for (size_t start = 0; start + size <= pixels.size(); start += size) {
      const std::vector<float> image(pixels.begin() + start, pixels.begin() + start + size);
      preview.Write("image", image);
      preview.Run();
      std::vector<float> logits = preview.Read("logits");
      const bool early = Confidence(logits, criterion, temperature) >= threshold;
      if (!early) {
        specialist.Write("image", image);
        specialist.Write("coefficients", preview.Read("coefficients"));
        specialist.Run();
        logits = specialist.Read("logits");
      }
      const std::vector<double> probabilities = Softmax(logits);
      const auto largest = std::max_element(probabilities.begin(), probabilities.end());
      std::printf("%s  %.4f  %s\n", classes.at(largest - probabilities.begin()).c_str(), *largest,
                  early ? "preview" : "specialist");
    }
  }
  LiteRtDestroyEnvironment(environment);
}
