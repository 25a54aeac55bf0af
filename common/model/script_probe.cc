#include "common/model/script_probe.h"

#include <algorithm>
#include <cstring>
#include <sstream>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/model/network.h"
#include "common/model/torch_status.h"
#include "common/networks.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

bool SameBits(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.contiguous(), y = b.contiguous();
  return x.nbytes() == y.nbytes() && std::memcmp(x.data_ptr(), y.data_ptr(), x.nbytes()) == 0;
}

std::string Describe(const at::Tensor& tensor) {
  std::ostringstream text;
  text << toString(tensor.scalar_type()) << " " << tensor.sizes();
  return text.str();
}

class Probe {
 public:
  Probe(const v1::NetworkSpec& spec, torch::jit::Module& module, const torch::jit::Module& body)
      : spec_(spec), path_(spec.torchscript_path()), module_(module), body_(body), buffers_(Buffers(body)) {
    for (const auto& [name, buffer] : buffers_) stored_.push_back(buffer.detach().clone());
  }

  absl::StatusOr<ScriptFindings> Run() {
    torch::NoGradGuard no_grad;
    const absl::Cleanup restore = [this] { Set(stored_); };
    module_.train();
    at::Tensor output;
    try {
      output = Forward(2);
    } catch (const std::exception& error) {
      return absl::InvalidArgumentError(absl::StrFormat("%s does not take float images [n, %u, %u, %u]: %s", path_,
                                                        spec_.channels(), spec_.height(), spec_.width(),
                                                        FirstLine(error.what())));
    }
    MILLRACE_RETURN_IF_ERROR(CheckOutput(output));
    MILLRACE_RETURN_IF_ERROR(CheckInPlace());
    FindChanged(stored_);
    MILLRACE_RETURN_IF_ERROR(CheckCounters(output));
    // A statistic may start at the very value that the first batch gives: a running mean of 0 behind weights of 0.
    ProbeOtherValues();

    ScriptFindings findings;
    for (size_t i = 0; i < buffers_.size(); ++i) {
      if (!changed_[i] || !buffers_[i].second.is_floating_point()) continue;
      if (buffers_[i].second.scalar_type() != torch::kFloat32) {
        return absl::InvalidArgumentError(absl::StrCat(path_, " changes ", buffers_[i].first, ", which is ",
                                                       toString(buffers_[i].second.scalar_type()),
                                                       ", in its forward pass; only float32 can be kept"));
      }
      findings.statistics.push_back(buffers_[i]);
    }
    if (!WorksForOneSample()) findings.slot_samples_min = 2;
    return findings;
  }

 private:
  // Of images of noise; dropout, if there is any, drops the same every time.
  at::Tensor Forward(int64_t count) {
    torch::manual_seed(0);
    const auto noise = torch::arange(count * spec_.channels() * spec_.height() * spec_.width(), torch::kInt64)
                           .mul(37)
                           .remainder(256)
                           .to(torch::kUInt8)
                           .reshape({count, spec_.channels(), spec_.height(), spec_.width()});
    at::Tensor output = module_.get_method("output")({noise}).toTensor();
    now_ = Buffers(body_);
    // Older versions of PyTorch count batches by replacing the counter; it is not bound to anything.
    for (size_t i = 0; i < std::min(now_.size(), buffers_.size()); ++i) {
      if (!now_[i].second.is_floating_point()) buffers_[i].second = now_[i].second;
    }
    return output;
  }

  // Writes only what differs: a constant may be an expanded view, which cannot be written to.
  void Set(const std::vector<at::Tensor>& values) {
    torch::NoGradGuard no_grad;
    for (size_t i = 0; i < buffers_.size(); ++i) {
      at::Tensor& buffer = buffers_[i].second;
      if (!SameBits(buffer, values[i])) buffer.copy_(values[i]);
    }
  }

  absl::Status CheckOutput(const at::Tensor& output) const {
    std::vector<int64_t> expected = {2, spec_.classes()};
    if (!Classifies(spec_)) expected = {2, spec_.channels(), spec_.height(), spec_.width()};
    if (output.scalar_type() == torch::kFloat32 && output.sizes() == at::IntArrayRef(expected)) {
      return absl::OkStatus();
    }
    std::ostringstream wanted;
    wanted << at::IntArrayRef(expected);
    return absl::InvalidArgumentError(absl::StrCat(path_, " gives ", Describe(output),
                                                   " for two images instead of float ",
                                                   Classifies(spec_) ? "logits " : "images ", wanted.str()));
  }

  // A tensor that the module replaces by another would not be the one that is bound to the flat vector.
  absl::Status CheckInPlace() const {
    const bool same = std::equal(now_.begin(), now_.end(), buffers_.begin(), buffers_.end(),
                                 [](const auto& a, const auto& b) { return a.second.is_same(b.second); });
    if (same) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        path_, " assigns a new tensor to an attribute in its forward pass; change it in place (copy_, mul_, add_)"));
  }

  void FindChanged(const std::vector<at::Tensor>& before) {
    changed_.resize(buffers_.size());
    for (size_t i = 0; i < buffers_.size(); ++i) {
      if (!SameBits(now_[i].second, before[i])) changed_[i] = true;
    }
  }

  // Integers that count (num_batches_tracked) stay each worker's own, so nothing may depend on them. `output` is that
  // of the stored values, after which the buffers are as that pass left them.
  absl::Status CheckCounters(const at::Tensor& output) {
    std::vector<at::Tensor> others = stored_, after;
    std::string counters;
    for (size_t i = 0; i < buffers_.size(); ++i) {
      after.push_back(buffers_[i].second.clone());
      if (!changed_[i] || buffers_[i].second.is_floating_point()) continue;
      others[i] = stored_[i].scalar_type() == torch::kBool ? stored_[i].logical_not() : stored_[i] + 1000;
      absl::StrAppend(&counters, counters.empty() ? "" : ", ", buffers_[i].first);
    }
    if (counters.empty()) return absl::OkStatus();
    Set(others);
    bool same = false;
    try {
      same = SameBits(Forward(2), output);
    } catch (const std::exception&) {  // it does depend on the counter
    }
    for (size_t i = 0; i < buffers_.size(); ++i) {
      if (buffers_[i].second.is_floating_point()) same &= SameBits(buffers_[i].second, after[i]);
    }
    if (same) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": what it computes depends on what it counted before in ", counters,
                     " (batch normalisation with momentum=None?), and every worker would count for itself; give it a "
                     "momentum"));
  }

  void ProbeOtherValues() {
    std::vector<at::Tensor> others;
    for (const at::Tensor& stored : stored_) {
      others.push_back(stored.is_floating_point() ? stored * 1.25 + 0.125 : stored);
    }
    try {
      Set(others);
      Forward(2);
    } catch (const std::exception&) {  // a constant that does not stand it
      return;
    }
    FindChanged(others);
  }

  bool WorksForOneSample() {
    Set(stored_);
    try {
      Forward(1);
    } catch (const std::exception&) {
      return false;
    }
    for (size_t i = 0; i < buffers_.size(); ++i) {
      const at::Tensor& buffer = buffers_[i].second;
      const bool lost = changed_[i] && buffer.is_floating_point() && !torch::isfinite(buffer).all().item<bool>();
      if (lost) return false;
    }
    return true;
  }

  const v1::NetworkSpec& spec_;
  const std::string path_;
  torch::jit::Module& module_;
  const torch::jit::Module& body_;
  NamedTensors buffers_;
  NamedTensors now_;  // after the last forward pass
  std::vector<at::Tensor> stored_;
  std::vector<bool> changed_;
};

}  // namespace

absl::StatusOr<ScriptFindings> ProbeScript(const v1::NetworkSpec& spec, torch::jit::Module& module,
                                           const torch::jit::Module& body) {
  return Probe(spec, module, body).Run();
}

}  // namespace millrace
