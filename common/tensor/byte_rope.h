// Bytes that lie in several pieces, as a received message does, read where they are.
//
// A rope may be cut anywhere, also inside an element; ForEachBlock hides the cuts from whoever decodes elements, so a
// wire format is one small function over contiguous elements. Threads: a rope is an immutable view; the pieces must
// outlive it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace millrace {

class ByteRope {
 public:
  using Piece = std::span<const std::byte>;

  ByteRope() = default;
  // `offset` bytes into the concatenation of `pieces`, `size` bytes long; both must lie within it.
  ByteRope(std::span<const Piece> pieces, size_t offset, size_t size) : pieces_(pieces), offset_(offset), size_(size) {
    SkipEmptyPieces();
  }

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

  // The first `size` bytes, and the rope without them. Neither may ask for more than there is.
  ByteRope First(size_t size) const { return ByteRope(pieces_, offset_, size); }
  void RemovePrefix(size_t size) {
    offset_ += size;
    size_ -= size;
    SkipEmptyPieces();
  }
  // Requires a rope that is not empty.
  std::byte front() const { return pieces_.front()[offset_]; }

  // Calls fn(Piece) for every contiguous, non-empty piece in order.
  template <typename Fn>
  void ForEachPiece(Fn fn) const {
    size_t skip = offset_, left = size_;
    for (size_t i = 0; left > 0; ++i) {
      Piece piece = pieces_[i].subspan(skip);
      skip = 0;
      piece = piece.first(std::min(piece.size(), left));
      left -= piece.size();
      if (!piece.empty()) fn(piece);
    }
  }

  // Calls fn(data, first, count) for runs of whole elements of kElementSize bytes: `count` elements lie at `data`
  // (unaligned), the first of them is element number `first` of the rope. An element that is cut is put together in a
  // local buffer and comes as a run of its own. A partial element at the end of the rope is not delivered.
  template <size_t kElementSize, typename Fn>
  void ForEachBlock(Fn fn) const {
    std::array<std::byte, kElementSize> cut;
    size_t cut_size = 0, element = 0;
    ForEachPiece([&](Piece piece) {
      if (cut_size > 0) {
        const size_t take = std::min(kElementSize - cut_size, piece.size());
        std::memcpy(cut.data() + cut_size, piece.data(), take);
        cut_size += take;
        piece = piece.subspan(take);
        if (cut_size < kElementSize) return;
        fn(cut.data(), element++, size_t{1});
        cut_size = 0;
      }
      const size_t whole = piece.size() / kElementSize;
      if (whole > 0) fn(piece.data(), element, whole);
      element += whole;
      piece = piece.subspan(whole * kElementSize);
      if (!piece.empty()) std::memcpy(cut.data(), piece.data(), piece.size());
      cut_size = piece.size();
    });
  }

 private:
  void SkipEmptyPieces() {
    while (!pieces_.empty() && offset_ >= pieces_.front().size()) {
      offset_ -= pieces_.front().size();
      pieces_ = pieces_.subspan(1);
    }
  }

  std::span<const Piece> pieces_;
  size_t offset_ = 0;  // into the first piece
  size_t size_ = 0;
};

// Little-endian float32, the wire's and the files' number format. Each takes a rope of exactly 4 * out.size() bytes.
void CopyFloats(const ByteRope& values, std::span<float> out);  // out = values
void AddFloats(const ByteRope& values, std::span<float> out);   // out += values
// out = other + values; `out` and `other` must not overlap.
void SumFloats(const ByteRope& values, std::span<const float> other, std::span<float> out);

}  // namespace millrace
