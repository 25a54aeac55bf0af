#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "grpcpp/support/status.h"

namespace millrace {

// The one translation between the status of our own code and that of the wire. Codes are the same by definition
// (google/rpc/code.proto); a code that neither side knows becomes UNKNOWN. Of a message longer than 2 KiB the beginning
// is sent: peers would drop the whole status.
grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

// "UNAVAILABLE", "OK" ...; for metrics labels and log lines.
absl::string_view GrpcCodeName(grpc::StatusCode code);

}  // namespace millrace
