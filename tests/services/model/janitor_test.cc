#include "services/model/janitor.h"

#include <future>
#include <memory>
#include <thread>

#include "gtest/gtest.h"

namespace millrace {
namespace {

struct Tracked {
  explicit Tracked(std::promise<std::thread::id>* gone) : gone(gone) {}
  ~Tracked() { gone->set_value(std::this_thread::get_id()); }
  std::promise<std::thread::id>* gone;
};

TEST(Janitor, DestroysOnItsOwnThread) {
  Janitor janitor;
  std::promise<std::thread::id> gone;
  std::shared_ptr<Tracked> object = janitor.Adopt(std::make_unique<Tracked>(&gone));
  const std::weak_ptr<Tracked> watch = object;
  object.reset();
  EXPECT_TRUE(watch.expired());
  EXPECT_NE(gone.get_future().get(), std::this_thread::get_id());
}

TEST(Janitor, ObjectsMayOutliveIt) {
  std::promise<std::thread::id> gone;
  std::shared_ptr<Tracked> object;
  {
    Janitor janitor;
    object = janitor.Adopt(std::make_unique<Tracked>(&gone));
  }
  object.reset();
  EXPECT_EQ(gone.get_future().get(), std::this_thread::get_id());
}

TEST(Janitor, DestroysWhatWaitsBeforeItGoes) {
  std::promise<std::thread::id> gone[10];
  {
    Janitor janitor;
    for (auto& promise : gone) janitor.Adopt(std::make_unique<Tracked>(&promise));
  }
  for (auto& promise : gone) {
    EXPECT_EQ(promise.get_future().wait_for(std::chrono::seconds(0)), std::future_status::ready);
  }
}

}  // namespace
}  // namespace millrace
