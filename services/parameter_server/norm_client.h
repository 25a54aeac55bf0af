// The norm exchange of every shard but the first: asks shard 0 for the total, again and again until it has come.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "millrace/v1/parameter.pb.h"
#include "services/parameter_server/norm_exchange.h"

namespace millrace {

v1::NormPart EncodeNormPart(uint64_t run_id, uint32_t shard, uint64_t step, const SquaredNorm& norm);
v1::NormTotal EncodeNormTotal(const SquaredNorm& norm);
// INVALID_ARGUMENT for a message whose number of limbs is another.
absl::StatusOr<SquaredNorm> DecodeNorm(const v1::NormPart& part);
absl::StatusOr<SquaredNorm> DecodeNorm(const v1::NormTotal& total);

// Threads: any. One thread of its own, which calls `done`.
class NormClient final : public NormExchange {
 public:
  struct Options {
    uint64_t run_id = 0;
    uint32_t shard = 0;
    std::string address;                                              // of shard 0
    std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr;  // as MakeChannel takes them
    // Of one attempt: shard 0 answers when it has all parts, so that this also bounds how long a connection that was
    // lost without a word goes unnoticed.
    absl::Duration call_timeout = absl::Seconds(2);
  };
  explicit NormClient(Options options);
  ~NormClient() override;

  void Sum(uint64_t step, const SquaredNorm& part, Done done) override;
  void Cancel() override;
  std::string WaitingFor() const override;

 private:
  // Owned by the thread too: the client may be destroyed in a call of `done`, by a shard that nobody else needs.
  class State;

  const std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace millrace
