// Bugs for tests to find, so that they are known to find them: the simulator (tests/simulation), and of the last one
// tests/integration/reload_soak_test.py. No program that is shipped has one: a bug is chosen by
// -DMILLRACE_PLANTED_BUG=kName, which only the tests' own second compilation of a few sources is given.
#pragma once

namespace millrace {

enum class PlantedBug {
  kNone,
  kDoubleCount,       // the ledger counts a repeated result of a slot again                  (round_state.cc)
  kArrivalOrderSum,   // gradients are added to whichever neighbour is there, not in the tree  (aggregator.cc)
  kLostRegrant,       // what a lost or late worker held is never granted to another            (ledger.cc)
  kTornCommit,        // a manifest gets its name before its contents are on the disk          (files.cc)
  kStaleIncarnation,  // a shard that lost its weights is taken for the one that had them      (coordinator_runs.cc)
  kLeakedVersion,     // a version that was replaced is never unloaded                          (serving_table.cc)
};

#ifdef MILLRACE_PLANTED_BUG
constexpr PlantedBug kPlantedBug = PlantedBug::MILLRACE_PLANTED_BUG;
#else
constexpr PlantedBug kPlantedBug = PlantedBug::kNone;
#endif

}  // namespace millrace
