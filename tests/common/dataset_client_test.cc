#include "common/dataset_client.h"

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "common/grpc_channel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "millrace/v1/coordinator.pb.h"
#include "tests/services/data/data_life.h"
#include "tests/services/data/tiny_data.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(30);

class DatasetClientTest : public TinyDataTest {
 protected:
  const std::string address_ = "unix:" + (directory_ / "socket").string();
};

TEST_F(DatasetClientTest, DescribesTheDatasetOnceItIsThere) {
  std::unique_ptr<DataLife> life;
  v1::DescribeDatasetRequest request;
  request.set_validation_count(10);
  std::string waited_for;
  const auto info = DescribeDataset({address_}, request, kPatience, [&](std::string_view what, absl::Duration) {
    waited_for = what;
    if (life == nullptr) life = std::make_unique<DataLife>(address_, dataset_);
    return true;
  });
  ASSERT_THAT(info, IsOk());
  EXPECT_EQ(info->train_count(), 90);
  EXPECT_THAT(waited_for, HasSubstr("the data service at " + address_));
}

TEST_F(DatasetClientTest, DescribeGivesUp) {
  const auto go_on = [](std::string_view, absl::Duration time) {
    absl::SleepFor(time);
    return true;
  };
  EXPECT_THAT(DescribeDataset({address_}, {}, absl::Milliseconds(150), go_on),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr(address_)));
  EXPECT_THAT(DescribeDataset({address_}, {}, kPatience, [](std::string_view, absl::Duration) { return false; }),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr(address_)));
  const DataLife life(address_, dataset_);
  v1::DescribeDatasetRequest impossible;
  impossible.set_validation_count(100);
  EXPECT_THAT(DescribeDataset({address_}, impossible, kPatience, go_on), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(DatasetClientTest, AnyReplicaMayDescribeItAndTheWaitNamesAll) {
  const std::vector<std::string> addresses = {address_ + "-1", address_, address_ + "-2"};
  std::unique_ptr<DataLife> life;
  std::string waited_for;
  const auto info = DescribeDataset(addresses, {}, kPatience, [&](std::string_view what, absl::Duration) {
    waited_for = what;
    if (life == nullptr) life = std::make_unique<DataLife>(address_, dataset_);
    return true;
  });
  ASSERT_THAT(info, IsOk());
  EXPECT_EQ(info->train_count(), 100);
  EXPECT_THAT(waited_for, HasSubstr("a data service (none of 3 answers: " + addresses[0] + ": "));
  for (const std::string& address : addresses) EXPECT_THAT(waited_for, HasSubstr(address + ": "));
}

TEST_F(DatasetClientTest, ReplicasWithDifferentDatasetsAreRefused) {
  const auto directory = directory_ / "another";
  std::filesystem::create_directory(directory);
  TinyDataset{.train_count = 90}.Write(directory);
  const auto another = Dataset::Load(FindDatasetFiles(directory).value(), {}).value();
  const DataLife one(address_, dataset_), other(address_ + "-1", another);
  const auto give_up = [](std::string_view, absl::Duration) { return false; };
  EXPECT_THAT(DescribeDataset({address_ + "-away", address_, address_ + "-1"}, {}, kPatience, give_up),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr(dataset_->fingerprint().substr(0, 12) + ") at " + address_ + ","),
                             HasSubstr(another->fingerprint().substr(0, 12) + ") at " + address_ + "-1"))));
}

TEST_F(DatasetClientTest, IdentifiesOneInTheBackground) {
  IdentifyCall away(MakeChannel(address_), kPatience);
  EXPECT_THAT(away.Wait(), StatusIs(absl::StatusCode::kUnavailable));
  DataLife life(address_, nullptr);
  {
    IdentifyCall given_up(MakeChannel(address_), absl::Hours(1));
    EXPECT_FALSE(given_up.done());
  }
  IdentifyCall call(MakeChannel(address_), kPatience);
  life.service.SetDataset(dataset_);
  const absl::StatusOr<v1::DatasetIdentity> identity = call.Wait();
  ASSERT_THAT(identity, IsOk());
  EXPECT_EQ(identity->fingerprint(), dataset_->fingerprint());
  EXPECT_EQ(identity->name(), dataset_->name());
}

TEST(AgreedDatasetTest, TheSameSamplesMustBeDescribedAlikeWhateverTheirDirectoriesAreCalled) {
  v1::DatasetInfo info;
  info.set_name("mnist");
  info.set_fingerprint("f");
  info.set_train_count(10);
  const std::vector<std::string> addresses = {"a:1", "b:1", "c:1"};
  std::vector<absl::StatusOr<v1::DatasetInfo>> answers = {absl::UnavailableError("away"), info, info};
  answers[2]->set_name("copy");
  const auto agreed = AgreedDataset(addresses, answers);
  ASSERT_THAT(agreed, IsOk());
  EXPECT_EQ(agreed->name(), "mnist");
  answers[2]->set_mean(0.5);
  EXPECT_THAT(AgreedDataset(addresses, answers),
              StatusIs(absl::StatusCode::kFailedPrecondition, AllOf(HasSubstr("b:1 and c:1"), HasSubstr("versions"))));
}

TEST(ParseDataAddressesTest, TakesOneOrSeveral) {
  EXPECT_THAT(*ParseDataAddresses("a:1"), ElementsAre("a:1"));
  EXPECT_THAT(*ParseDataAddresses("a:1,unix:/b,[::1]:2"), ElementsAre("a:1", "unix:/b", "[::1]:2"));
  for (const char* text : {"", "a:1,", ",a:1", "a:1,,b:1"}) {
    EXPECT_THAT(ParseDataAddresses(text), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("empty address")));
  }
  EXPECT_THAT(ParseDataAddresses("a:1,b:1,a:1"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("a:1 is named twice")));
  EXPECT_THAT(ParseDataAddresses("a:1,b"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'b'")));
  std::string many = "a:0";
  for (int port = 1; port < 17; ++port) many += ",a:" + std::to_string(port);
  EXPECT_THAT(ParseDataAddresses(many),
              StatusIs(absl::StatusCode::kInvalidArgument, "17 addresses are over the limit of 16"));
}

TEST(BatchPlanOfTest, TakesWhatBatchesDependOn) {
  v1::JobPlan job;
  job.mutable_dataset()->set_fingerprint("f");
  job.mutable_spec()->set_seed(1);
  job.mutable_spec()->set_validation_count(2);
  job.mutable_spec()->set_batch_size(3);
  job.mutable_spec()->set_slots(4);
  job.mutable_spec()->set_evaluation_batch_size(5);
  const v1::BatchPlan batches = BatchPlanOf(job);
  EXPECT_EQ(batches.fingerprint(), "f");
  EXPECT_EQ(batches.seed(), 1u);
  EXPECT_EQ(batches.validation_count(), 2u);
  EXPECT_EQ(batches.batch_size(), 3u);
  EXPECT_EQ(batches.slots(), 4u);
  EXPECT_EQ(batches.evaluation_batch_size(), 5u);
  EXPECT_FALSE(batches.has_augmentation());
  job.mutable_spec()->mutable_augmentation()->set_rotate(6);
  EXPECT_EQ(BatchPlanOf(job).augmentation().rotate(), 6);
}

}  // namespace
}  // namespace millrace
