#pragma once

#include <cstdint>
#include <filesystem>

namespace millrace {

// A tiny dataset in MNIST's file format: ten classes of 28x28 images, each a bright square whose place tells the class,
// in noise. Learnable in a few dozen steps.
struct IdxDataset {
  int train_count = 1600;
  int test_count = 200;
  uint32_t seed = 1;
};

// Writes the four files (not compressed) into `directory`, which is created.
void WriteIdxDataset(const std::filesystem::path& directory, const IdxDataset& dataset = {});

// Writes one image of class `label` as PNG.
void WriteDigitPng(const std::filesystem::path& file, int label);

}  // namespace millrace
