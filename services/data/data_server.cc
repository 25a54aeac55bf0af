#include "services/data/data_server.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace millrace {

absl::StatusOr<std::unique_ptr<Service>> DataServer::Create(const Options& options, ServiceContext& context) {
  MILLRACE_ASSIGN_OR_RETURN(DatasetSource source, FindDataset(options.data_dir));
  return std::unique_ptr<Service>(new DataServer(options, std::move(source), context));
}

DataServer::DataServer(const Options& options, DatasetSource source, ServiceContext& context)
    : options_(options),
      source_(std::move(source)),
      context_(context),
      metrics_(context.metrics()),
      service_(metrics_) {}

DataServer::~DataServer() {
  if (loader_.joinable()) loader_.join();
}

absl::Status DataServer::Started(const ListenAddresses& /*addresses*/) {
  loader_ = std::thread([this] { Load(); });
  return absl::OkStatus();
}

void DataServer::Load() {
  const absl::Time begin = absl::Now();
  absl::StatusOr<std::shared_ptr<const Dataset>> dataset = Dataset::Load(source_, options_.dataset);
  if (!dataset.ok()) {
    context_.RequestStop(dataset.status());
    return;
  }
  const absl::Duration elapsed = absl::Now() - begin;
  const Samples& train = (*dataset)->train();
  const Samples& test = (*dataset)->test();
  metrics_.load_seconds.Set(absl::ToDoubleSeconds(elapsed));
  metrics_.dataset_samples.Set(static_cast<double>(train.count() + test.count()));
  metrics_.dataset_bytes.Set(static_cast<double>((*dataset)->memory_bytes()));
  LogInfo("dataset loaded", {{"name", (*dataset)->name()},
                             {"fingerprint", (*dataset)->fingerprint()},
                             {"train_samples", train.count()},
                             {"test_samples", test.count()},
                             {"channels", train.shape().channels},
                             {"height", train.shape().height},
                             {"width", train.shape().width},
                             {"classes", (*dataset)->classes()},
                             {"took", elapsed}});
  LogInfo("dataset report", {{"report", (*dataset)->Report()}});
  service_.SetDataset(*std::move(dataset));
}

absl::Status DataServer::Ready() {
  if (service_.dataset() != nullptr) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("loading the dataset from ", options_.data_dir));
}

std::string DataServer::StatusPage() {
  const std::shared_ptr<const Dataset> dataset = service_.dataset();
  std::string text = absl::StrCat("directory: ", options_.data_dir, "\n");
  absl::StrAppend(&text, dataset == nullptr ? "dataset: being loaded\n" : dataset->Report());
  return text + service_.StreamsText();
}

void DataServer::Drain(absl::Duration /*grace*/) { service_.Drain(); }

}  // namespace millrace
