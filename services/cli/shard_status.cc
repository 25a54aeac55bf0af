#include "services/cli/shard_status.h"

#include <future>

#include "absl/strings/str_cat.h"
#include "common/grpc_channel.h"
#include "millrace/v1/parameter.grpc.pb.h"

namespace millrace {
namespace {

std::string AskShard(const std::string& address, absl::Duration timeout,
                     const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  const auto stub = v1::ParameterServer::NewStub(MakeChannel(address, credentials));
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  v1::ShardStatus status;
  const grpc::Status result = stub->GetShardStatus(&context, {}, &status);
  if (!result.ok()) return absl::StrCat("no answer: ", result.error_message());
  return absl::StrCat("version ", status.version(), ", waiting for ", status.waiting_for());
}

}  // namespace

std::map<uint32_t, std::string> AskShards(const v1::JobStatus& status, absl::Duration timeout,
                                          const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  std::map<uint32_t, std::future<std::string>> asked;
  for (const v1::ShardInfo& shard : status.shards()) {
    if (shard.address().empty()) continue;
    asked[shard.shard()] = std::async(std::launch::async, AskShard, shard.address(), timeout, credentials);
  }
  std::map<uint32_t, std::string> answers;
  for (auto& [shard, answer] : asked) answers[shard] = answer.get();
  return answers;
}

}  // namespace millrace
