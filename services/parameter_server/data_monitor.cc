#include "services/parameter_server/data_monitor.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/dataset_client.h"
#include "common/grpc_channel.h"
#include "common/log.h"

namespace millrace {

DataReplicaStates::DataReplicaStates(const std::vector<std::string>& addresses, std::string fingerprint)
    : fingerprint_(std::move(fingerprint)) {
  for (const std::string& address : addresses) states_.emplace_back().status.set_address(address);
}

bool DataReplicaStates::Update(size_t replica, const absl::StatusOr<v1::DatasetIdentity>& answer, absl::Time now) {
  auto& [status, since] = states_[replica];
  v1::DataReplicaStatus::State state = v1::DataReplicaStatus::STATE_UP;
  std::string reason;
  if (!answer.ok()) {
    state = v1::DataReplicaStatus::STATE_DOWN;
    reason = std::string(answer.status().message());
  } else if (answer->fingerprint() != fingerprint_) {
    state = v1::DataReplicaStatus::STATE_REFUSED;
    reason = absl::StrCat("it has the dataset ", answer->name(), " with fingerprint ", answer->fingerprint(),
                          ", the job's has ", fingerprint_);
  }
  status.set_reason(std::move(reason));
  if (state == status.state()) return false;
  status.set_state(state);
  since = now;
  return true;
}

std::vector<v1::DataReplicaStatus> DataReplicaStates::Report(absl::Time now) const {
  std::vector<v1::DataReplicaStatus> report;
  for (const State& state : states_) {
    report.push_back(state.status);
    report.back().set_since_seconds(absl::ToDoubleSeconds(now - state.since));
  }
  return report;
}

DataMonitor::DataMonitor(Options options, Tell tell)
    : options_(std::move(options)), tell_(std::move(tell)), states_(options_.addresses, options_.fingerprint) {
  for (const std::string& address : options_.addresses) {
    channels_.push_back(MakeChannel(address, options_.credentials));
    up_.push_back(&options_.metrics->Gauge("millrace_coordinator_data_replica_up",
                                           "1 if this replica of the data service answers, with the job's dataset.",
                                           {{"replica", address}}));
  }
  thread_ = std::thread([this] { Run(); });
}

DataMonitor::~DataMonitor() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    stop_.SignalAll();
  }
  thread_.join();
}

void DataMonitor::Run() {
  for (;;) {
    AskAll();
    const absl::Time next = options_.clock->Now() + options_.interval;
    MutexLock lock(&mutex_);
    while (!stopping_ && options_.clock->Now() < next) stop_.WaitWithTimeout(&mutex_, next - options_.clock->Now());
    if (stopping_) return;
  }
}

void DataMonitor::AskAll() {
  std::vector<std::unique_ptr<IdentifyCall>> calls;
  for (const std::shared_ptr<grpc::Channel>& channel : channels_) {
    calls.push_back(std::make_unique<IdentifyCall>(channel, options_.timeout));
  }
  for (size_t replica = 0; replica < calls.size(); ++replica) {
    const bool changed = states_.Update(replica, calls[replica]->Wait(), options_.clock->Now());
    const v1::DataReplicaStatus& status = states_.of(replica);
    up_[replica]->Set(status.state() == v1::DataReplicaStatus::STATE_UP ? 1 : 0);
    if (!changed) continue;
    switch (status.state()) {
      case v1::DataReplicaStatus::STATE_UP:
        LogInfo("data service is up", {{"address", status.address()}});
        break;
      case v1::DataReplicaStatus::STATE_REFUSED:
        LogError("DATA SERVICE REFUSED", {{"address", status.address()}, {"reason", status.reason()}});
        break;
      default:
        LogWarning("data service is down", {{"address", status.address()}, {"reason", status.reason()}});
    }
  }
  tell_(states_.Report(options_.clock->Now()));
}

}  // namespace millrace
