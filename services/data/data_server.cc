#include "services/data/data_server.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace millrace {

absl::StatusOr<std::unique_ptr<Service>> DataServer::Create(const Options& options, ServiceContext& context) {
  MILLRACE_ASSIGN_OR_RETURN(DatasetFiles files, FindDatasetFiles(options.data_dir));
  return std::unique_ptr<Service>(new DataServer(options, std::move(files), context));
}

DataServer::DataServer(const Options& options, DatasetFiles files, ServiceContext& context)
    : options_(options), files_(std::move(files)), context_(context), metrics_(context.metrics()), service_(metrics_) {}

DataServer::~DataServer() {
  if (loader_.joinable()) loader_.join();
}

absl::Status DataServer::Started(const ListenAddresses& /*addresses*/) {
  loader_ = std::thread([this] { Load(); });
  return absl::OkStatus();
}

void DataServer::Load() {
  const absl::Time begin = absl::Now();
  absl::StatusOr<std::shared_ptr<const Dataset>> dataset = Dataset::Load(files_, {.classes = options_.classes});
  if (!dataset.ok()) {
    context_.RequestStop(dataset.status());
    return;
  }
  const absl::Duration elapsed = absl::Now() - begin;
  const Samples& train = (*dataset)->train();
  const Samples& test = (*dataset)->test();
  const uint64_t samples = train.count() + test.count();
  metrics_.load_seconds.Set(absl::ToDoubleSeconds(elapsed));
  metrics_.dataset_samples.Set(static_cast<double>(samples));
  metrics_.dataset_bytes.Set(static_cast<double>(samples * (train.image_bytes() + 1)));
  LogInfo("dataset loaded", {{"name", (*dataset)->name()},
                             {"fingerprint", (*dataset)->fingerprint()},
                             {"train_samples", train.count()},
                             {"test_samples", test.count()},
                             {"height", train.height()},
                             {"width", train.width()},
                             {"classes", (*dataset)->classes()},
                             {"mean", (*dataset)->train_sums().Mean()},
                             {"standard_deviation", (*dataset)->train_sums().StandardDeviation()},
                             {"took", elapsed}});
  service_.SetDataset(*std::move(dataset));
}

absl::Status DataServer::Ready() {
  if (service_.dataset() != nullptr) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("loading the dataset from ", options_.data_dir.string()));
}

std::string DataServer::StatusPage() {
  const std::shared_ptr<const Dataset> dataset = service_.dataset();
  std::string text = absl::StrCat("directory: ", options_.data_dir.string(), "\n");
  if (dataset == nullptr) {
    absl::StrAppend(&text, "dataset: being loaded\n");
  } else {
    absl::StrAppend(&text, "dataset: ", dataset->name(), "\nfingerprint: ", dataset->fingerprint(),
                    "\ntrain files: ", dataset->train().count(), " samples\ntest files: ", dataset->test().count(),
                    " samples\nimages: ", dataset->train().height(), " x ", dataset->train().width(),
                    " pixels\nclasses: ", dataset->classes(),
                    ", train samples by label: ", absl::StrJoin(dataset->train_class_counts(), " "),
                    "\npixel / 255: mean ", dataset->train_sums().Mean(), ", standard deviation ",
                    dataset->train_sums().StandardDeviation(), "\n");
  }
  return text + service_.StreamsText();
}

void DataServer::Drain(absl::Duration /*grace*/) { service_.Drain(); }

}  // namespace millrace
