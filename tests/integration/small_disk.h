#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "tests/integration/cluster_process.h"
#include "tests/testing/temporary_directory.h"

namespace millrace {

// A disk that can be filled up and freed again: a file system in memory, mounted where only this process and its
// children see it, so that nothing stays mounted however the test ends. Who may not mount gets a stand-in: a limit on
// the size of the files that parameter servers write, which fails in the same calls with another reason.
//
// Not thread-safe; use it, and start programs that see it, from one thread. Outlives the programs that write to it.
class SmallDisk {
 public:
  SmallDisk();
  ~SmallDisk();

  // The disk's root. What lies beside it does not lie on the disk.
  const std::filesystem::path& root() const { return root_; }

  // False for the stand-in.
  bool mounted() const { return mounted_; }
  // The system's words for what does not fit.
  std::string full() const { return mounted_ ? "No space left on device" : "File too large"; }
  // What `millrace train` must be given for the stand-in to work.
  std::vector<std::string> flags() const;

  // From now on no more than `bytes_left` fit: small files do, a checkpoint does not. Call it while nobody writes.
  void Fill(size_t bytes_left = size_t{256} << 10);
  // There is space again, also for the parameter servers of `running`.
  void Free(const Program* running = nullptr);

 private:
  TemporaryDirectory directory_;
  const std::filesystem::path root_ = directory_ / "disk";
  const std::filesystem::path programs_ = directory_ / "bin";  // of the stand-in
  bool mounted_ = false;
};

}  // namespace millrace
