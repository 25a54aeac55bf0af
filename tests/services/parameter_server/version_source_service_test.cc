#include "services/parameter_server/version_source_service.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/grpc_channel.h"
#include "common/grpc_server.h"
#include "common/grpc_status.h"
#include "common/hashing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class VersionSourceServiceTest : public ::testing::Test {
 protected:
  void Write(const std::string& version, const std::string& file, const std::string& contents) {
    fs::create_directories(root_ / "models/mnist" / version);
    std::ofstream(root_ / "models/mnist" / version / file, std::ios::binary) << contents;
  }
  absl::StatusOr<v1::ListExportedVersionsResponse> List(uint32_t newest, const std::vector<uint64_t>& besides = {}) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(20));
    v1::ListExportedVersionsRequest request;
    request.set_newest(newest);
    request.mutable_besides()->Assign(besides.begin(), besides.end());
    v1::ListExportedVersionsResponse response;
    const absl::Status status = FromGrpcStatus(stub_->ListExportedVersions(&context, request, &response));
    if (!status.ok()) return status;
    return response;
  }
  absl::StatusOr<std::string> Read(uint64_t version, const std::string& file, uint64_t offset = 0) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(20));
    v1::ReadExportedFileRequest request;
    request.set_version(version);
    request.set_file(file);
    request.set_offset(offset);
    v1::ReadExportedFileResponse response;
    const absl::Status status = FromGrpcStatus(stub_->ReadExportedFile(&context, request, &response));
    if (!status.ok()) return status;
    return response.data();
  }

  const TemporaryDirectory root_;
  VersionSourceService service_{root_ / "models", "mnist"};
  const std::unique_ptr<GrpcServer> server_ =
      GrpcServer::Start({.address = "unix:" + (root_ / "socket").string()}, {&service_}).value();
  const std::unique_ptr<v1::VersionSource::Stub> stub_ = v1::VersionSource::NewStub(MakeChannel(server_->address()));
};

TEST_F(VersionSourceServiceTest, ListsWholeVersionsNewestFirst) {
  auto listing = List(3);
  ASSERT_THAT(listing, IsOk());
  EXPECT_EQ(listing->model(), "mnist");
  EXPECT_EQ(listing->versions_size(), 0) << "before the first export";

  for (const char* version : {"6", "12", "18"}) Write(version, "manifest.json", version);
  Write("18", "manifest.sig", "signature");
  Write("24", "model.pt", "no manifest yet");
  Write(".30.tmp", "manifest.json", "not renamed yet");
  listing = List(2);
  ASSERT_THAT(listing, IsOk());
  ASSERT_EQ(listing->versions_size(), 2);
  EXPECT_EQ(listing->versions(0).version(), 18u);
  EXPECT_EQ(listing->versions(0).manifest_sha256(), Sha256Hex("18"));
  EXPECT_EQ(listing->versions(0).signature(), "signature");
  EXPECT_EQ(listing->versions(1).version(), 12u);
  EXPECT_EQ(listing->versions(1).signature(), "");

  const auto versions = [&](uint32_t newest, const std::vector<uint64_t>& besides) {
    std::vector<uint64_t> found;
    const auto listing = List(newest, besides);
    for (const v1::ExportedVersion& version : listing->versions()) found.push_back(version.version());
    return found;
  };
  EXPECT_THAT(versions(1, {6, 24, 7}), ElementsAre(18, 6)) << "those that are there";
  EXPECT_THAT(versions(2, {18, 12}), ElementsAre(18, 12)) << "once each";
  fs::remove(root_ / "models/mnist/6/manifest.json");
  fs::create_directory(root_ / "models/mnist/6/manifest.json");
  EXPECT_THAT(versions(1, {6}), ElementsAre(18)) << "one that cannot be read keeps none away";
  EXPECT_THAT(List(1, std::vector<uint64_t>(65)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("65 versions; the limit is 64")));

  EXPECT_THAT(List(0), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("[1, 64]")));
  EXPECT_THAT(List(65), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("newest 65")));
}

TEST_F(VersionSourceServiceTest, ReadsAFileInPieces) {
  std::string contents(size_t{5} << 19, 'a');
  for (size_t i = 0; i < contents.size(); ++i) contents[i] = static_cast<char>(i % 251);
  Write("6", "model.pt", contents);
  std::string read;
  for (int pieces = 0; pieces < 3; ++pieces) {
    const auto piece = Read(6, "model.pt", read.size());
    ASSERT_THAT(piece, IsOk());
    EXPECT_LE(piece->size(), size_t{1} << 20);
    read += *piece;
  }
  EXPECT_TRUE(read == contents);
  EXPECT_EQ(*Read(6, "model.pt", contents.size()), "");
  EXPECT_EQ(*Read(6, "model.pt", UINT64_MAX), "");
}

TEST_F(VersionSourceServiceTest, HandsOutNothingButFilesOfVersions) {
  Write("6", "manifest.json", "{}");
  std::ofstream(root_ / "secret") << "secret";
  for (const std::string& name :
       std::vector<std::string>{"../../../secret", "/etc/passwd", ".", "..", "", ".hidden", std::string("a\0b", 3)}) {
    EXPECT_THAT(Read(6, name), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("plain file name"))) << name;
  }
  EXPECT_THAT(Read(6, "model.pt"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("6/model.pt")));
  EXPECT_THAT(Read(7, "manifest.json"), StatusIs(absl::StatusCode::kNotFound));
  fs::create_directories(root_ / "models/mnist/6/directory");
  EXPECT_FALSE(Read(6, "directory").ok());
}

}  // namespace
}  // namespace millrace
