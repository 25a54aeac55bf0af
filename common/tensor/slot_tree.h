// The fixed binary tree in which the gradients of a step's slots are added (DESIGN D1). It depends on nothing but the
// number of slots, so the sum has the same bits whoever computes which part of it.
//
// A node of level j is the slot range [k * 2^j, min((k + 1) * 2^j, slots)); its value is its left child plus its right
// child, or the left child alone where the right one would lie beyond the last slot. Different levels that denote the
// same range are the same node.
#pragma once

#include <bit>
#include <cstdint>

namespace millrace {

struct SlotNode {
  uint32_t begin = 0;
  uint32_t end = 0;

  bool Covers(const SlotNode& other) const { return begin <= other.begin && other.end <= end; }
  bool operator==(const SlotNode&) const = default;
};

// The width of the smallest level at which `node` occurs; 0 if it is no node of a tree over `slots` slots.
constexpr uint32_t SlotNodeWidth(SlotNode node, uint32_t slots) {
  if (node.begin >= node.end || node.end > slots) return 0;
  const uint64_t width = std::bit_ceil(uint64_t{node.end} - node.begin);
  if (node.begin % width != 0) return 0;
  if (node.end - node.begin != width && node.end != slots) return 0;
  return width > UINT32_MAX ? 0 : static_cast<uint32_t>(width);
}

constexpr bool IsSlotNode(SlotNode node, uint32_t slots) { return SlotNodeWidth(node, slots) != 0; }

// What a node is added to next: the other child of SlotParent(node). Never empty. Requires a node that is not the root.
constexpr SlotNode SlotSibling(SlotNode node, uint32_t slots) {
  for (uint64_t width = SlotNodeWidth(node, slots);; width *= 2) {
    if (node.begin % (2 * width) != 0) return {static_cast<uint32_t>(node.begin - width), node.begin};
    const uint64_t end = node.begin + 2 * width;
    if (node.end < slots) return {node.end, end < slots ? static_cast<uint32_t>(end) : slots};
  }
}

// The smallest node that covers more than `node`. Requires a node that is not the root.
constexpr SlotNode SlotParent(SlotNode node, uint32_t slots) {
  const SlotNode sibling = SlotSibling(node, slots);
  return sibling.begin < node.begin ? SlotNode{sibling.begin, node.end} : SlotNode{node.begin, sibling.end};
}

}  // namespace millrace
