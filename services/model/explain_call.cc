#include "services/model/explain_call.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "services/model/inference_call.h"
#include "services/model/inference_question.h"
#include "services/model/rollout.h"

namespace millrace {
namespace {

absl::StatusOr<ExplainOptions> ToOptions(const v1::ExplainRequest& request) {
  ExplainOptions options;
  switch (request.method()) {
    case v1::ExplainRequest::METHOD_UNSPECIFIED:
    case v1::ExplainRequest::METHOD_INTEGRATED_GRADIENTS:
      options.method = ExplainMethod::kIntegratedGradients;
      break;
    case v1::ExplainRequest::METHOD_SALIENCY:
      options.method = ExplainMethod::kSaliency;
      break;
    case v1::ExplainRequest::METHOD_OCCLUSION:
      options.method = ExplainMethod::kOcclusion;
      break;
    default:
      return absl::InvalidArgumentError(absl::StrCat("unknown method ", static_cast<int>(request.method())));
  }
  if (request.has_target()) options.target = request.target();
  if (request.steps() != 0) options.steps = request.steps();
  if (request.patch() != 0) options.patch = request.patch();
  return options;
}

void FillResponse(const ModelInfo& info, const ExplainAnswer& answer, v1::ExplainResponse* response) {
  response->set_model(info.model);
  response->set_version(info.version);
  response->set_step(info.step);
  response->set_digest(info.digest);
  response->set_compute_microseconds(static_cast<uint64_t>(absl::ToInt64Microseconds(answer.compute)));
  response->set_cached(answer.cached);
  const uint8_t* image = answer.images.data();
  for (const Explanation& explanation : answer.explanations) {
    v1::Explanation& row = *response->add_explanations();
    row.set_target(explanation.target);
    row.set_score(explanation.score);
    row.set_baseline_score(explanation.baseline_score);
    row.mutable_map()->Assign(explanation.map.begin(), explanation.map.end());
    row.set_height(info.input.height);
    row.set_width(info.input.width);
    row.set_completeness_error(explanation.completeness_error);
    row.set_image(image, info.input.bytes());
    image += info.input.bytes();
  }
}

// gRPC deletes it when the call has ended and the handler has returned.
class ExplainCall final : public grpc::ServerUnaryReactor {
 public:
  explicit ExplainCall(v1::ExplainResponse* response) : response_(response) {}

  void Start(Explainer& explainer, std::shared_ptr<const LoadedVersion> version, const InferenceRequest& request,
             ExplainOptions options) {
    explainer_ = &explainer;
    const ModelInfo* info = &version->info();  // the explainer holds the version until the answer
    ticket_ = explainer.Explain(std::move(version), request, std::move(options),
                                [this, info](const absl::StatusOr<ExplainAnswer>& answer) {
                                  if (answer.ok()) FillResponse(*info, *answer, response_);
                                  End(answer.status());
                                });
  }
  void End(const absl::Status& status) { Finish(ToGrpcStatus(status)); }

 private:
  // Never before the handler, and with it Start, has returned.
  void OnCancel() override {
    if (explainer_ != nullptr) explainer_->Cancel(ticket_);
  }
  void OnDone() override { delete this; }

  v1::ExplainResponse* const response_;
  Explainer* explainer_ = nullptr;
  Explainer::Ticket ticket_ = 0;
};

}  // namespace

grpc::ServerUnaryReactor* StartExplainCall(grpc::CallbackServerContext* context, const v1::ExplainRequest& request,
                                           v1::ExplainResponse* response, const ServingTable& table,
                                           Explainer& explainer, const Clock& clock) {
  auto* call = new ExplainCall(response);
  const absl::StatusOr<InferenceQuestion> question = ToQuestion(table, request, DeadlineOf(*context, clock));
  absl::StatusOr<ExplainOptions> options = ToOptions(request);
  for (const absl::Status& status : {question.status(), options.status()}) {
    if (status.ok()) continue;
    call->End(status);
    return call;
  }
  call->Start(explainer, AnswererOf(question->version, question->request), question->request, *std::move(options));
  return call;
}

}  // namespace millrace
