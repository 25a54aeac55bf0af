// The words by which flags and summaries call the values of an enum of the job, said once:
//
//   constexpr std::array<Named<v1::BestBy>, 2> kBestBy = {{{"loss", v1::BEST_BY_LOSS}, {"accuracy",
//   v1::BEST_BY_ACCURACY}}}; app.add_option("--best-by", flags.best_by)->check(CLI::IsMember(NamesOf(kBestBy)));
//   spec.set_best_by(ValueOf(kBestBy, *flags.best_by));
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace millrace {

template <typename Enum>
struct Named {
  absl::string_view name;
  Enum value;
};

// The first name stands for values that have none, as UNSPECIFIED does.
template <typename Enum, size_t size>
constexpr absl::string_view NameOf(const std::array<Named<Enum>, size>& names, Enum value) {
  for (const Named<Enum>& named : names) {
    if (named.value == value) return named.name;
  }
  return names[0].name;
}

// The first value for a word that is none of the names: the flag's check has refused it.
template <typename Enum, size_t size>
constexpr Enum ValueOf(const std::array<Named<Enum>, size>& names, absl::string_view name) {
  for (const Named<Enum>& named : names) {
    if (named.name == name) return named.value;
  }
  return names[0].value;
}

template <typename Enum, size_t size>
std::vector<std::string> NamesOf(const std::array<Named<Enum>, size>& names) {
  std::vector<std::string> all;
  for (const Named<Enum>& named : names) all.emplace_back(named.name);
  return all;
}

}  // namespace millrace
