#include "services/cli/restart_policy.h"

#include "gtest/gtest.h"

namespace millrace {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1'000'000);

TEST(RestartPolicyTest, RestartsSoonAfterALongLife) {
  RestartPolicy policy;
  absl::Time now = kStart;
  for (int life = 0; life < 100; ++life) {
    policy.OnStart(now);
    now += absl::Seconds(5);
    EXPECT_EQ(policy.OnDeath(now), now + absl::Milliseconds(100));
    EXPECT_EQ(policy.early_deaths(), 0);
  }
}

TEST(RestartPolicyTest, BacksOffAndGivesUpAtTheFifthEarlyDeath) {
  RestartPolicy policy({.delay_max = absl::Milliseconds(300)});
  absl::Time now = kStart;
  for (const int delay_ms : {100, 200, 300, 300}) {
    policy.OnStart(now);
    now += absl::Seconds(1);
    ASSERT_EQ(policy.OnDeath(now), now + absl::Milliseconds(delay_ms));
  }
  policy.OnStart(now);
  EXPECT_EQ(policy.OnDeath(now + absl::Seconds(1)), std::nullopt);
  EXPECT_EQ(policy.early_deaths(), 5);
}

TEST(RestartPolicyTest, ALongLifeClearsTheCount) {
  RestartPolicy policy;
  absl::Time now = kStart;
  for (int death = 0; death < 4; ++death) {
    policy.OnStart(now);
    ASSERT_TRUE(policy.OnDeath(now).has_value());
  }
  policy.OnStart(now);
  now += absl::Minutes(1);
  ASSERT_TRUE(policy.OnDeath(now).has_value());
  policy.OnStart(now);
  EXPECT_EQ(policy.OnDeath(now), now + absl::Milliseconds(100));
}

}  // namespace
}  // namespace millrace
