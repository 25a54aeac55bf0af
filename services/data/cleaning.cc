#include "services/data/cleaning.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "common/hashing.h"

namespace millrace {
namespace {

constexpr size_t kExamples = 5;
constexpr std::array<absl::string_view, kFaultCount> kFlagNames = {"labels", "constant", "conflicts", "duplicates",
                                                                   "leaks"};
constexpr std::array<absl::string_view, kFaultCount> kDescriptions = {
    "labels that are no class", "images of one colour", "equal images with different labels",
    "samples that repeat an earlier one", "train images that are also test images"};
constexpr std::array<absl::string_view, 3> kActionNames = {"refuse", "drop", "keep"};

// Finds equal images: sorts by hash, then compares within equal hashes.
struct HashedImage {
  uint64_t hash;
  bool test;
  uint64_t index;
};

class Examination {
 public:
  Examination(const MemorySamples& train, const MemorySamples& test, uint32_t classes)
      : train_(train), test_(test), classes_(classes) {
    for (std::vector<bool>& marks : train_marks_) marks.resize(train.count());
    for (std::vector<bool>& marks : test_marks_) marks.resize(test.count());
  }

  void Run() {
    ExamineEach(false);
    ExamineEach(true);
    std::ranges::sort(images_, [](const HashedImage& a, const HashedImage& b) {
      return std::tie(a.hash, a.test, a.index) < std::tie(b.hash, b.test, b.index);
    });
    for (size_t begin = 0; begin < images_.size();) {
      size_t end = begin + 1;
      while (end < images_.size() && images_[end].hash == images_[begin].hash) ++end;
      if (end - begin > 1) CompareWithin(begin, end);
      begin = end;
    }
  }

  const std::vector<bool>& marks(Fault fault, bool test) const {
    return (test ? test_marks_ : train_marks_)[static_cast<size_t>(fault)];
  }
  CleaningReport::Finding& finding(Fault fault) { return findings_[static_cast<size_t>(fault)]; }

 private:
  const MemorySamples& of(bool test) const { return test ? test_ : train_; }
  std::span<const uint8_t> Pixels(const HashedImage& image) const { return of(image.test).pixels(image.index); }
  uint32_t Label(const HashedImage& image) const { return of(image.test).label(image.index); }
  static std::string Name(const HashedImage& image) {
    return absl::StrCat(image.test ? "test" : "train", " sample ", image.index);
  }

  void Mark(Fault fault, bool test, uint64_t index, const std::string& example) {
    std::vector<bool>& marks = (test ? test_marks_ : train_marks_)[static_cast<size_t>(fault)];
    if (marks[index]) return;
    marks[index] = true;
    CleaningReport::Finding& found = finding(fault);
    ++(test ? found.test : found.train);
    if (found.examples.size() < kExamples) found.examples.push_back(example);
  }

  void ExamineEach(bool test) {
    const MemorySamples& samples = of(test);
    for (uint64_t index = 0; index < samples.count(); ++index) {
      const std::span<const uint8_t> pixels = samples.pixels(index);
      const HashedImage image = {Checksum64(std::as_bytes(pixels)), test, index};
      const uint32_t label = samples.label(index);
      const bool bad_label = label >= classes_;
      const bool constant = std::memcmp(pixels.data(), pixels.data() + 1, pixels.size() - 1) == 0;
      if (bad_label) {
        Mark(Fault::kBadLabel, test, index,
             absl::StrCat("label ", label, " of ", Name(image), " is over the largest of ", classes_, " classes, ",
                          classes_ - 1));
      }
      if (constant) {
        Mark(Fault::kConstant, test, index, absl::StrCat(Name(image), " is ", pixels[0], " everywhere"));
      }
      if (!bad_label && !constant) images_.push_back(image);
    }
  }

  // Of one hash. Different images with one are next to impossible, but that must not show.
  void CompareWithin(size_t begin, size_t end) {
    std::vector<HashedImage> rest(images_.begin() + begin, images_.begin() + end);
    while (rest.size() > 1) {
      const std::span<const uint8_t> first = Pixels(rest.front());
      const auto others = std::stable_partition(
          rest.begin(), rest.end(), [&](const HashedImage& image) { return std::ranges::equal(Pixels(image), first); });
      ExamineEqual({rest.begin(), others});
      rest.erase(rest.begin(), others);
    }
  }

  // Images of the same pixels, those of the train split first.
  void ExamineEqual(std::span<const HashedImage> equal) {
    const auto tests = std::ranges::find_if(equal, &HashedImage::test);
    const std::span<const HashedImage> in_train(equal.begin(), tests), in_test(tests, equal.end());
    ExamineEqualOfSplit(in_train);
    ExamineEqualOfSplit(in_test);
    if (in_test.empty()) return;
    for (const HashedImage& image : in_train) {
      Mark(Fault::kLeak, false, image.index, absl::StrCat(Name(image), " equals ", Name(in_test.front())));
    }
  }

  void ExamineEqualOfSplit(std::span<const HashedImage> equal) {
    std::map<uint32_t, const HashedImage*> first_with;  // by label
    for (const HashedImage& image : equal) {
      const auto [first, is_first] = first_with.emplace(Label(image), &image);
      if (is_first) continue;
      Mark(Fault::kDuplicate, image.test, image.index, absl::StrCat(Name(image), " equals ", Name(*first->second)));
    }
    if (first_with.size() < 2) return;
    for (const HashedImage& image : equal) {
      auto other = first_with.begin();
      if (other->first == Label(image)) ++other;
      Mark(Fault::kConflict, image.test, image.index,
           absl::StrCat(Name(image), " equals ", Name(*other->second), ", with labels ", Label(image), " and ",
                        other->first));
    }
  }

  const MemorySamples& train_;
  const MemorySamples& test_;
  const uint32_t classes_;
  std::array<std::vector<bool>, kFaultCount> train_marks_, test_marks_;
  std::array<CleaningReport::Finding, kFaultCount> findings_;
  std::vector<HashedImage> images_;
};

std::vector<uint64_t> CountClasses(const MemorySamples& samples, uint32_t classes) {
  std::vector<uint64_t> counts(classes);
  for (const uint8_t label : samples.labels()) {
    if (label < classes) ++counts[label];
  }
  return counts;
}

std::string DescribeFinding(Fault fault, const CleaningReport::Finding& finding) {
  return absl::StrCat(finding.train + finding.test, " ", kDescriptions[static_cast<size_t>(fault)], " (",
                      absl::StrJoin(finding.examples, "; "),
                      finding.train + finding.test > finding.examples.size() ? "; ..." : "", ")");
}

uint64_t CountMarks(const std::vector<bool>& marks) { return static_cast<uint64_t>(std::ranges::count(marks, true)); }

}  // namespace

absl::StatusOr<CleanPolicy> ParseCleanPolicy(std::string_view text) {
  CleanPolicy policy;
  for (const absl::string_view item : absl::StrSplit(absl::string_view(text.data(), text.size()), ',')) {
    const std::vector<absl::string_view> parts = absl::StrSplit(item, absl::MaxSplits('=', 1));
    const auto action = std::ranges::find(kActionNames, parts.back());
    const auto name = std::ranges::find(kFlagNames, parts.front());
    if (action == kActionNames.end() || (parts.size() == 2 && name == kFlagNames.end())) {
      return absl::InvalidArgumentError(absl::StrCat("'", item,
                                                     "' is neither refuse, drop or keep, nor one of them for ",
                                                     absl::StrJoin(kFlagNames, ", "), ", as in duplicates=drop"));
    }
    const auto value = static_cast<CleanAction>(action - kActionNames.begin());
    if (parts.size() == 2) {
      policy.actions[static_cast<size_t>(name - kFlagNames.begin())] = value;
    } else {
      policy.actions.fill(value);
    }
  }
  return policy;
}

std::string CleaningReport::ToString() const {
  std::string text;
  for (int i = 0; i < kFaultCount; ++i) {
    const Finding& finding = findings[i];
    if (finding.train + finding.test == 0) continue;
    absl::StrAppendFormat(&text, "  %-40s %8d train %8d test   %s\n", kDescriptions[i], finding.train, finding.test,
                          finding.action == CleanAction::kDrop ? "dropped" : "kept");
    for (const std::string& example : finding.examples) absl::StrAppend(&text, "    ", example, "\n");
    if (finding.train + finding.test > finding.examples.size()) absl::StrAppend(&text, "    ...\n");
  }
  if (text.empty()) text = "  nothing found\n";
  return text;
}

absl::StatusOr<CleaningReport> Clean(MemorySamples& train, MemorySamples& test, uint32_t classes,
                                     const CleanPolicy& policy) {
  Examination examination(train, test, classes);
  examination.Run();
  CleaningReport report;
  std::vector<bool> drop_train(train.count()), drop_test(test.count());
  for (int i = 0; i < kFaultCount; ++i) {
    const auto fault = static_cast<Fault>(i);
    CleaningReport::Finding& finding = report.findings[i];
    finding = examination.finding(fault);
    finding.action = policy.of(fault);
    if (finding.train + finding.test == 0) continue;
    // A label that is no class cannot be trained on, whatever the policy.
    const bool impossible = fault == Fault::kBadLabel && finding.action == CleanAction::kKeep;
    if (finding.action == CleanAction::kRefuse || impossible) {
      return absl::DataLossError(absl::StrCat(DescribeFinding(fault, finding), "; --clean ", kFlagNames[i],
                                              "=drop takes them out", impossible ? "" : ", ",
                                              impossible ? "" : kFlagNames[i], impossible ? "" : "=keep accepts them"));
    }
    if (finding.action == CleanAction::kKeep) continue;
    for (uint64_t index = 0; index < train.count(); ++index) {
      if (examination.marks(fault, false)[index]) drop_train[index] = true;
    }
    for (uint64_t index = 0; index < test.count(); ++index) {
      if (examination.marks(fault, true)[index]) drop_test[index] = true;
    }
  }
  report.dropped_train = CountMarks(drop_train);
  report.dropped_test = CountMarks(drop_test);
  if (report.dropped_train == train.count() || report.dropped_test == test.count()) {
    return absl::DataLossError(absl::StrCat(
        "nothing is left to ", report.dropped_train == train.count() ? "train" : "test", " on:\n", report.ToString()));
  }
  if (report.dropped_train > 0) train.Remove(drop_train);
  if (report.dropped_test > 0) test.Remove(drop_test);
  report.train_class_counts = CountClasses(train, classes);
  report.test_class_counts = CountClasses(test, classes);
  return report;
}

uint32_t DeriveClasses(const MemorySamples& train, const CleanPolicy& policy) {
  std::array<uint64_t, 256> counts = {};
  for (const uint8_t label : train.labels()) ++counts[label];
  uint32_t largest = 255;
  while (largest > 0 && counts[largest] == 0) --largest;
  if (largest == 0) return 0;
  if (policy.of(Fault::kBadLabel) == CleanAction::kKeep) return largest + 1;
  uint32_t classes = 1;
  while (classes <= largest && counts[classes] > 0) ++classes;
  return classes;
}

}  // namespace millrace
