#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "millrace/v1/coordinator.pb.h"

namespace grpc {
class ChannelCredentials;
}

namespace millrace {

// Asks every shard whose address the coordinator knows, all at once, how far it is and what it waits for. By shard
// number, "version 812, waiting for step 812: slots 5-7"; of a shard that has not answered after `timeout`, or cannot
// be reached, "no answer: ..." with the reason. Blocks for at most `timeout`. `credentials` as MakeChannel takes them.
std::map<uint32_t, std::string> AskShards(const v1::JobStatus& status, absl::Duration timeout,
                                          const std::shared_ptr<grpc::ChannelCredentials>& credentials = nullptr);

}  // namespace millrace
