#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "millrace/v1/coordinator.grpc.pb.h"

namespace millrace {

// How the job of a `millrace train` that another process runs is doing. Not thread-safe.
class JobStatusClient {
 public:
  // Of the run in this output directory.
  explicit JobStatusClient(std::filesystem::path out) : out_(std::move(out)) {}

  // Nothing while it cannot be had: before the cluster is up, and while its coordinator is being replaced. Blocks for
  // at most half a second.
  std::optional<v1::JobStatus> Ask();

  // The coordinator's, once Ask has found it.
  const std::string& coordinator_address() const { return coordinator_address_; }

 private:
  const std::filesystem::path out_;
  std::string coordinator_address_;
  std::unique_ptr<v1::Coordinator::Stub> coordinator_;
};

}  // namespace millrace
