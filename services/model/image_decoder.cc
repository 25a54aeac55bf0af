#include "services/model/image_decoder.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "services/model/image_codecs.h"

namespace millrace {

absl::Status CheckImageSides(uint64_t width, uint64_t height) {
  if (width == 0 || height == 0) return absl::InvalidArgumentError("the image has no pixels");
  if (width > kImageSideMax || height > kImageSideMax) {
    return absl::InvalidArgumentError(absl::StrCat("the image is ", width, " x ", height, " pixels, over the limit of ",
                                                   kImageSideMax, " x ", kImageSideMax));
  }
  return absl::OkStatus();
}

absl::StatusOr<Image> DecodeImage(std::span<const uint8_t> encoded, uint32_t channels) {
  if (channels != 1 && channels != 3) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model takes ", channels, " channels; images give 1 or 3, so send raw pixels"));
  }
  if (encoded.empty()) return absl::InvalidArgumentError("the image is empty");
  if (encoded.size() > kEncodedImageBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("the image has ", encoded.size(), " bytes, over the limit of ", kEncodedImageBytesMax));
  }
  if (IsPng(encoded)) return DecodePng(encoded, channels);
  if (IsJpeg(encoded)) return DecodeJpeg(encoded, channels);
  return absl::InvalidArgumentError("the image is neither PNG nor JPEG");
}

}  // namespace millrace
