// Networks and images that the tests of common/model share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/random.h"
#include "millrace/v1/job.pb.h"

namespace millrace {

inline v1::NetworkSpec NetworkOf(const std::string& architecture, uint32_t channels = 1, uint32_t height = 28,
                                 uint32_t width = 28, uint32_t classes = 10) {
  v1::NetworkSpec spec;
  spec.set_architecture(architecture);
  spec.set_channels(channels);
  spec.set_height(height);
  spec.set_width(width);
  spec.set_classes(classes);
  spec.set_mean(0);
  spec.set_standard_deviation(1);
  return spec;
}

struct Samples {
  std::vector<uint8_t> images;
  std::vector<uint8_t> labels;
};

// Noise with labels; the same for the same seed.
inline Samples RandomSamples(const v1::NetworkSpec& spec, size_t count, uint64_t seed) {
  Samples samples;
  PhiloxStream random(seed, 0);
  samples.images.resize(count * spec.channels() * spec.height() * spec.width());
  for (uint8_t& pixel : samples.images) pixel = static_cast<uint8_t>(random.NextUint32() >> 24);
  samples.labels.resize(count);
  for (uint8_t& label : samples.labels) label = static_cast<uint8_t>(random.NextUint32() % spec.classes());
  return samples;
}

}  // namespace millrace
