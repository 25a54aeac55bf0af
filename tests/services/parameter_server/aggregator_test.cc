#include "services/parameter_server/aggregator.h"

#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "tests/services/parameter_server/small_plan.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

constexpr uint64_t kElements = 2 * kNumbersTogether + 2;
constexpr uint64_t kChunk = kNumbersTogether;  // the third chunk has 2 elements
const std::vector<uint64_t> kOffsets = {0, kChunk, 2 * kChunk};

// One chunk of a flat gradient as it may arrive, cut into pieces.
class Arrival {
 public:
  Arrival(const std::vector<float>& flat, uint64_t offset, std::vector<size_t> cuts = {}, v1::NumberFormat wire = {}) {
    const auto values = std::span(flat).subspan(offset, std::min(kChunk, flat.size() - offset));
    bytes_.resize(EncodedBytes(wire, values.size()));
    Encode(wire, values, bytes_);
    size_t begin = 0;
    for (size_t cut : cuts) {
      cut = std::min(cut, bytes_.size() - begin);
      pieces_.emplace_back(bytes_.data() + begin, cut);
      begin += cut;
    }
    pieces_.emplace_back(bytes_.data() + begin, bytes_.size() - begin);
  }
  ByteRope rope() const { return ByteRope(pieces_, 0, bytes_.size()); }

 private:
  std::vector<std::byte> bytes_;
  std::vector<ByteRope::Piece> pieces_;
};

bool SameBits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

std::vector<SlotNode> AllNodes(uint32_t slots) {
  std::vector<SlotNode> nodes;
  for (uint32_t begin = 0; begin < slots; ++begin) {
    for (uint32_t end = begin + 1; end <= slots; ++end) {
      if (IsSlotNode({begin, end}, slots)) nodes.push_back({begin, end});
    }
  }
  return nodes;
}

// Any nodes in any order, again and again, of any granularity, interleaved between chunks, until nothing is missing.
RC_GTEST_PROP(AggregatorTest, AnyArrivalGivesTheBitsOfTheTree, ()) {
  const auto slots = *rc::gen::inRange<uint32_t>(1, 20);
  const std::vector<SlotNode> nodes = AllNodes(slots);
  const auto wire = *rc::gen::element(v1::NUMBER_FORMAT_FLOAT32, v1::NUMBER_FORMAT_BFLOAT16, v1::NUMBER_FORMAT_FLOAT16,
                                      v1::NUMBER_FORMAT_MXINT8);
  Aggregator aggregator(kElements, kChunk, slots, wire);
  const auto steps = *rc::gen::inRange<uint64_t>(1, 4);
  for (uint64_t step = 0; step < steps; ++step) {
    std::map<uint64_t, std::vector<bool>> arrived;  // by offset: slots that some arrival has covered
    for (uint64_t offset : kOffsets) arrived[offset].resize(slots);
    bool complete = false;
    auto add = [&](SlotNode node, uint64_t offset, const std::vector<size_t>& cuts) {
      const Arrival arrival(NodeGradient(step, node, slots, kElements, wire), offset, cuts, wire);
      auto& held = arrived[offset];
      const bool news = std::find(held.begin() + node.begin, held.begin() + node.end, false) != held.begin() + node.end;
      std::fill(held.begin() + node.begin, held.begin() + node.end, true);
      const auto added = aggregator.Add(node, offset, arrival.rope());
      RC_ASSERT(added.ok());
      // What is covered only piecewise has been put together from its pieces wherever they were siblings.
      RC_ASSERT(*added == news);
      complete = std::all_of(arrived.begin(), arrived.end(), [](const auto& entry) {
        return std::find(entry.second.begin(), entry.second.end(), false) == entry.second.end();
      });
      RC_ASSERT(aggregator.complete(offset / kChunk) == (std::find(held.begin(), held.end(), false) == held.end()));
    };
    const auto arrivals = *rc::gen::container<std::vector<std::tuple<size_t, size_t, size_t>>>(
        rc::gen::tuple(rc::gen::inRange<size_t>(0, nodes.size()), rc::gen::inRange<size_t>(0, kOffsets.size()),
                       rc::gen::inRange<size_t>(0, 16)));
    for (const auto& [node, offset, cut] : arrivals) add(nodes[node], kOffsets[offset], {cut, cut / 2});
    for (uint64_t offset : kOffsets) {
      for (uint32_t slot = 0; slot < slots; ++slot) {
        if (!arrived[offset][slot]) add({slot, slot + 1}, offset, {});
      }
    }
    RC_ASSERT(complete);
    RC_ASSERT(aggregator.MissingSlots().empty());
    RC_ASSERT(SameBits(aggregator.total(), NodeGradient(step, {0, slots}, slots, kElements, wire)));
    aggregator.Reset();
    for (uint64_t chunk = 0; chunk < aggregator.chunks(); ++chunk) RC_ASSERT(!aggregator.complete(chunk));
  }
}

TEST(AggregatorTest, OneSlotIsTakenAsItIs) {
  Aggregator aggregator(kElements, kChunk, 1);
  const auto gradient = SlotGradient(0, 0, kElements);
  for (uint64_t offset : kOffsets) EXPECT_TRUE(*aggregator.Add({0, 1}, offset, Arrival(gradient, offset).rope()));
  for (uint64_t chunk = 0; chunk < kOffsets.size(); ++chunk) EXPECT_TRUE(aggregator.complete(chunk));
  EXPECT_TRUE(SameBits(aggregator.total(), gradient));
  EXPECT_FALSE(*aggregator.Add({0, 1}, 0, Arrival(gradient, 0).rope()));
}

TEST(AggregatorTest, SaysWhatIsMissing) {
  Aggregator aggregator(kElements, kChunk, 6);
  const auto gradient = NodeGradient(0, {0, 4}, 6, kElements);
  for (uint64_t chunk : {0, 1}) {
    EXPECT_TRUE(*aggregator.Add({0, 4}, kOffsets[chunk], Arrival(gradient, kOffsets[chunk]).rope()));
  }
  EXPECT_FALSE(aggregator.Holds({0, 4}));
  EXPECT_EQ(aggregator.MissingSlots().size(), 6u);
  EXPECT_TRUE(*aggregator.Add({0, 4}, kOffsets[2], Arrival(gradient, kOffsets[2]).rope()));
  EXPECT_TRUE(aggregator.Holds({0, 4}));
  EXPECT_TRUE(aggregator.Holds({2, 3}));
  EXPECT_FALSE(aggregator.Holds({0, 6}));
  EXPECT_EQ(aggregator.MissingSlots(), (std::vector<uint32_t>{4, 5}));
}

TEST(AggregatorTest, AnUnfinishedStepLeavesNothingBehind) {
  Aggregator aggregator(kElements, kChunk, 4);
  EXPECT_TRUE(*aggregator.Add({0, 2}, 0, Arrival(NodeGradient(7, {0, 2}, 4, kElements), 0).rope()));
  aggregator.Reset();
  const auto gradient = NodeGradient(8, {0, 4}, 4, kElements);
  for (uint64_t offset : kOffsets) EXPECT_TRUE(*aggregator.Add({0, 4}, offset, Arrival(gradient, offset).rope()));
  EXPECT_TRUE(SameBits(aggregator.total(), gradient));
}

TEST(AggregatorTest, RefusesWhatDoesNotFit) {
  Aggregator aggregator(kElements, kChunk, 6);
  const auto gradient = SlotGradient(0, 0, kElements);
  const Arrival first(gradient, 0), last(gradient, kOffsets[2]);
  using absl::StatusCode;
  EXPECT_THAT(aggregator.Add({1, 3}, 0, first.rope()), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(aggregator.Add({2, 2}, 0, first.rope()), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(aggregator.Add({4, 8}, 0, first.rope()), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(aggregator.Add({0, 1}, 2, first.rope()), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(aggregator.Add({0, 1}, 3 * kChunk, first.rope()), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(aggregator.Add({0, 1}, UINT64_MAX - kChunk + 1, first.rope()), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(aggregator.Add({0, 1}, kOffsets[2], first.rope()), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(aggregator.Add({0, 1}, 0, last.rope()), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_EQ(aggregator.MissingSlots().size(), 6u);
}

}  // namespace
}  // namespace millrace
