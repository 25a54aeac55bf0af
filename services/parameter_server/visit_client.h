// Asks the data service what visits should have been made, in the background: training never waits for it. A question
// is asked until it is answered, of each replica in turn, with back-off when all are away; meanwhile a line in the log
// says so now and then.
//
// Threads: Ask from any thread, with locks held; it returns at once. Answers come on the client's own thread.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "common/replica_choice.h"
#include "millrace/v1/coordinator.pb.h"
#include "millrace/v1/data.pb.h"

namespace grpc {
class ClientContext;
}

namespace millrace {

// The requests that together say what the steps [check.begin(), check.end()) of `plan` should have visited: one for a
// whole epoch, if it has at most kExpectedVisitsMax samples, else one for so many steps that it is answered soon.
std::vector<v1::ExpectedVisitsRequest> VisitRequests(const v1::JobPlan& plan, const v1::VisitCheck& check);

class VisitClient {
 public:
  // Gets the check with what is expected.
  using Answer = std::function<void(const v1::VisitCheck&)>;

  // Questions that wait beyond this many are given up, the oldest first, with a warning.
  static constexpr size_t kWaitingMax = 64;

  // `credentials` as MakeChannel takes them.
  VisitClient(std::vector<std::string> addresses, Answer answer,
              std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr);
  // Gives up what was not answered.
  ~VisitClient();

  void Ask(const v1::JobPlan& plan, const v1::VisitCheck& check);

 private:
  struct Question {
    v1::VisitCheck check;
    std::vector<v1::ExpectedVisitsRequest> requests;
  };

  void Run();
  // Asks until there is an answer, a refusal, or the end (CANCELLED).
  absl::StatusOr<v1::ExpectedVisits> AskUntilAnswered(const v1::ExpectedVisitsRequest& request);
  absl::StatusOr<v1::ExpectedVisits> AskOnce(const std::string& address, const v1::ExpectedVisitsRequest& request);
  bool Sleep(absl::Duration time);  // false: the end

  const std::vector<std::string> addresses_;
  const Answer answer_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;

  Mutex mutex_;
  CondVar changed_;
  std::deque<Question> waiting_ ABSL_GUARDED_BY(mutex_);
  grpc::ClientContext* call_ ABSL_GUARDED_BY(mutex_) = nullptr;  // in progress
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  ReplicaChoice choice_;  // the thread's own
  std::thread thread_;    // last: it uses the others
};

}  // namespace millrace
