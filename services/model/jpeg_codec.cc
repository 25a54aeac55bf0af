#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstring>
// jpeglib.h needs size_t and FILE before it.
#include <jpeglib.h>

#include "absl/strings/str_cat.h"
#include "services/model/image_codecs.h"

namespace millrace {
namespace {

// A progressive file may hold any number of scans, each of which walks the whole picture; honest ones hold about ten.
constexpr int kScansMax = 100;

// libjpeg reports errors by calling error_exit, which must not return: it jumps back to the setjmp of the function
// below that called into libjpeg. Those functions and everything here are plain data, so a jump passes over no
// destructor.
struct Session {
  jpeg_decompress_struct decoder;
  jpeg_error_mgr errors;
  jpeg_progress_mgr progress;
  jmp_buf failed;
  char message[JMSG_LENGTH_MAX];  // of the error, or of the first warning
};

Session* SessionOf(j_common_ptr common) { return static_cast<Session*>(common->client_data); }

void OnError(j_common_ptr common) {
  Session* session = SessionOf(common);
  common->err->format_message(common, session->message);
  longjmp(session->failed, 1);
}

// A negative level is a warning: the data is corrupt and libjpeg has made something up to go on.
void OnMessage(j_common_ptr common, int level) {
  if (level >= 0) return;
  if (common->err->num_warnings++ == 0) common->err->format_message(common, SessionOf(common)->message);
}

void OnProgress(j_common_ptr common) {
  Session* session = SessionOf(common);
  if (session->decoder.input_scan_number <= kScansMax) return;
  std::snprintf(session->message, sizeof(session->message), "more than %d scans", kScansMax);
  longjmp(session->failed, 1);
}

void Open(Session* session) {
  std::memset(session, 0, sizeof(*session));
  session->decoder.err = jpeg_std_error(&session->errors);
  session->errors.error_exit = OnError;
  session->errors.emit_message = OnMessage;
  session->decoder.client_data = session;
}

bool ReadHeader(Session* session, const uint8_t* data, size_t size) {
  if (setjmp(session->failed) != 0) return false;
  jpeg_create_decompress(&session->decoder);
  session->progress.progress_monitor = OnProgress;
  session->decoder.progress = &session->progress;
  jpeg_mem_src(&session->decoder, data, size);
  jpeg_read_header(&session->decoder, TRUE);
  return true;
}

// pixels: width * height * channels bytes.
bool ReadPixels(Session* session, J_COLOR_SPACE colours, size_t row_bytes, uint8_t* pixels) {
  if (setjmp(session->failed) != 0) return false;
  session->decoder.out_color_space = colours;
  session->decoder.dct_method = JDCT_ISLOW;
  jpeg_start_decompress(&session->decoder);
  while (session->decoder.output_scanline < session->decoder.output_height) {
    JSAMPROW row = pixels + row_bytes * session->decoder.output_scanline;
    jpeg_read_scanlines(&session->decoder, &row, 1);
  }
  jpeg_finish_decompress(&session->decoder);
  return true;
}

absl::Status Corrupt(const Session& session) {
  return absl::InvalidArgumentError(absl::StrCat("corrupt JPEG: ", session.message));
}

absl::StatusOr<Image> Decode(Session* session, std::span<const uint8_t> encoded, uint32_t channels) {
  if (!ReadHeader(session, encoded.data(), encoded.size())) return Corrupt(*session);
  const jpeg_decompress_struct& decoder = session->decoder;
  if (absl::Status sides = CheckImageSides(decoder.image_width, decoder.image_height); !sides.ok()) return sides;
  if (decoder.num_components != 1 && decoder.num_components != 3) {
    return absl::InvalidArgumentError(
        absl::StrCat("the JPEG has ", decoder.num_components, " colour components; 1 (grey) and 3 are supported"));
  }
  Image image{decoder.image_width, decoder.image_height, channels, {}};
  const size_t row_bytes = size_t{image.width} * channels;
  image.pixels.resize(row_bytes * image.height);
  if (!ReadPixels(session, channels == 1 ? JCS_GRAYSCALE : JCS_RGB, row_bytes, image.pixels.data())) {
    return Corrupt(*session);
  }
  if (session->errors.num_warnings > 0) return Corrupt(*session);
  return image;
}

}  // namespace

bool IsJpeg(std::span<const uint8_t> encoded) {
  return encoded.size() >= 3 && encoded[0] == 0xff && encoded[1] == 0xd8 && encoded[2] == 0xff;
}

absl::StatusOr<Image> DecodeJpeg(std::span<const uint8_t> encoded, uint32_t channels) {
  Session session;
  Open(&session);
  absl::StatusOr<Image> image = Decode(&session, encoded, channels);
  jpeg_destroy_decompress(&session.decoder);  // harmless where creation failed: the structure is zeroed
  return image;
}

}  // namespace millrace
