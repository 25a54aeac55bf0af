#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace millrace {

// Hosts with addresses of their own on one switch: Linux network namespaces without names, so that nothing remains of
// them however the test ends.
//
// Not thread-safe; use it, and start the programs on its hosts, from the thread that created it. Outlives them.
class VirtualNetwork {
 public:
  // UNAVAILABLE says why there can be none here, such as for who is not root.
  static absl::StatusOr<std::unique_ptr<VirtualNetwork>> Create(int hosts);
  // The calling thread is back in the network it came from.
  ~VirtualNetwork();
  VirtualNetwork(const VirtualNetwork&) = delete;
  VirtualNetwork& operator=(const VirtualNetwork&) = delete;

  // "10.83.0.2"; hosts count from 0.
  static std::string AddressOf(int host);

  // Programs that this thread starts from now on run on `host`.
  void Enter(int host);

  // From now until Mend no packet between the two arrives, and neither is told. Stays on the host it was on.
  void Cut(int host, int other);
  void Mend(int host, int other);

 private:
  class Namespace;

  VirtualNetwork();
  absl::Status Build(int hosts);
  void Route(int host, const char* change, int other);

  const std::unique_ptr<Namespace> outside_;
  std::unique_ptr<Namespace> switch_;
  std::vector<std::unique_ptr<Namespace>> hosts_;
  int current_ = 0;
};

}  // namespace millrace
