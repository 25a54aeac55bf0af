#include "services/parameter_server/optimizer_spec.h"

#include <cmath>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/parameter_server/small_plan.h"
#include "tests/testing/status_matchers.h"

namespace millrace {
namespace {

// What is said of a spec that is good but for one change.
template <typename Change>
std::string Fault(v1::OptimizerSpec spec, Change change) {
  change(spec);
  return std::string(CheckOptimizerSpec(spec).message());
}

TEST(CheckOptimizerSpecTest, TakesWhatIsInTheLimits) {
  EXPECT_THAT(CheckOptimizerSpec(Adam()), IsOk());
  for (const double momentum : {0.0, 0.9, 0.999}) EXPECT_THAT(CheckOptimizerSpec(Sgd(momentum)), IsOk());
}

TEST(CheckOptimizerSpecTest, NamesTheFieldItsValueAndTheLimit) {
  EXPECT_EQ(Fault(Adam(), [](auto& spec) { spec.set_learning_rate(0); }),
            "optimizer.learning_rate 0 must be over 0 and finite");
  EXPECT_EQ(Fault(Adam(), [](auto& spec) { spec.set_learning_rate(HUGE_VAL); }),
            "optimizer.learning_rate inf must be over 0 and finite");
  EXPECT_EQ(Fault(Adam(), [](auto& spec) { spec.set_weight_decay(-0.5); }),
            "optimizer.weight_decay -0.5 must be at least 0 and finite");
  EXPECT_EQ(Fault(Adam(), [](auto& spec) { spec.set_weight_decay(HUGE_VAL); }),
            "optimizer.weight_decay inf must be at least 0 and finite");
  EXPECT_EQ(Fault(Adam(), [](auto& spec) { spec.set_beta1(1); }), "optimizer.beta1 1 must be at least 0 and below 1");
  EXPECT_EQ(Fault(Adam(), [](auto& spec) { spec.set_beta2(-0.1); }),
            "optimizer.beta2 -0.1 must be at least 0 and below 1");
  EXPECT_EQ(Fault(Adam(), [](auto& spec) { spec.set_epsilon(NAN); }),
            "optimizer.epsilon nan must be over 0 and finite");
  EXPECT_EQ(Fault(Sgd(0), [](auto& spec) { spec.set_momentum(1); }),
            "optimizer.momentum 1 must be at least 0 and below 1");
  EXPECT_EQ(Fault(Adam(), [](auto& spec) { spec.clear_kind(); }),
            "optimizer.kind is missing or unknown; known: SGD, ADAM, ADAMW");
}

}  // namespace
}  // namespace millrace
