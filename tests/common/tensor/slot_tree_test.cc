#include "common/tensor/slot_tree.h"

#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace millrace {
namespace {

// The definition in the header, spelled out.
std::set<std::pair<uint32_t, uint32_t>> AllNodes(uint32_t slots) {
  std::set<std::pair<uint32_t, uint32_t>> nodes;
  for (uint64_t width = 1; width < 2 * uint64_t{slots}; width *= 2) {
    for (uint64_t begin = 0; begin < slots; begin += width) {
      nodes.insert({begin, std::min<uint64_t>(begin + width, slots)});
    }
  }
  return nodes;
}

TEST(SlotTreeTest, NodesAreTheAlignedRanges) {
  for (uint32_t slots = 1; slots <= 40; ++slots) {
    const auto nodes = AllNodes(slots);
    for (uint32_t begin = 0; begin <= slots + 1; ++begin) {
      for (uint32_t end = 0; end <= slots + 2; ++end) {
        EXPECT_EQ(IsSlotNode({begin, end}, slots), nodes.contains({begin, end}))
            << slots << ": " << begin << "-" << end;
      }
    }
  }
}

TEST(SlotTreeTest, SiblingsMakeTheirParentAllTheWayUp) {
  for (uint32_t slots = 1; slots <= 40; ++slots) {
    for (const auto& [begin, end] : AllNodes(slots)) {
      const SlotNode root{0, slots};
      for (SlotNode node{begin, end}; !(node == root);) {
        const SlotNode sibling = SlotSibling(node, slots), parent = SlotParent(node, slots);
        ASSERT_TRUE(IsSlotNode(sibling, slots) && IsSlotNode(parent, slots));
        ASSERT_EQ(SlotSibling(sibling, slots), node) << slots << ": " << begin << "-" << end;
        ASSERT_EQ(SlotParent(sibling, slots), parent);
        ASSERT_TRUE(parent.Covers(node) && parent.Covers(sibling));
        ASSERT_EQ(parent.end - parent.begin, node.end - node.begin + sibling.end - sibling.begin);
        node = parent;
      }
    }
  }
}

TEST(SlotTreeTest, FiveSlots) {
  EXPECT_EQ(SlotSibling({4, 5}, 5), (SlotNode{0, 4}));
  EXPECT_EQ(SlotParent({0, 2}, 5), (SlotNode{0, 4}));
  EXPECT_FALSE(IsSlotNode({3, 5}, 5));
  EXPECT_FALSE(IsSlotNode({1, 3}, 5));
}

TEST(SlotTreeTest, ExtremeRangesAreNoNodes) {
  EXPECT_FALSE(IsSlotNode({0, UINT32_MAX}, 1024));
  EXPECT_FALSE(IsSlotNode({UINT32_MAX, 0}, 1024));
  EXPECT_FALSE(IsSlotNode({5, 5}, 1024));
}

}  // namespace
}  // namespace millrace
