// A process built on RunService, for service_runtime_test to start, ask and stop.
#include <memory>

#include "CLI/CLI.hpp"
#include "common/command_line.h"
#include "common/service_runtime.h"
#include "tests/common/fake_model_service.h"

namespace millrace {
namespace {

// Ends the process when it is asked for model "stop" or "fail".
class StoppableModelService : public FakeModelService {
 public:
  explicit StoppableModelService(ServiceContext& context) : context_(context) {}

  grpc::Status Predict(grpc::ServerContext* context, const v1::PredictRequest* request,
                       v1::PredictResponse* response) override {
    if (request->model() == "stop") context_.RequestStop(absl::OkStatus());
    if (request->model() == "fail") context_.RequestStop(absl::NotFoundError("the data went away"));
    return FakeModelService::Predict(context, request, response);
  }

 private:
  ServiceContext& context_;
};

class TinyService : public Service {
 public:
  explicit TinyService(ServiceContext& context) : model_service_(context) {}

  std::vector<grpc::Service*> GrpcServices() override { return {&model_service_}; }

  std::string StatusPage() override { return "nothing to do\n"; }

  void Drain(absl::Duration) override { model_service_.release.Notify(); }

 private:
  StoppableModelService model_service_;
};

int Main(int argc, char** argv) {
  ServiceFlags flags{.listen = "127.0.0.1:0", .http_listen = "127.0.0.1:0"};
  std::string data_dir;
  CLI::App app("A service for tests.", "tiny");
  AddServiceFlags(app, flags);
  app.add_option("--tiny-data-dir", data_dir);
  if (const std::optional<int> code = ParseCommandLine(app, argc, argv)) return *code;
  return RunService("tiny", flags, [&](ServiceContext& context) -> absl::StatusOr<std::unique_ptr<Service>> {
    if (!data_dir.empty()) return absl::NotFoundError("no data in " + data_dir);
    return std::make_unique<TinyService>(context);
  });
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) { return millrace::Main(argc, argv); }
