#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "common/command_line.h"
#include "services/cli/explain_command.h"
#include "services/cli/load_test_command.h"
#include "services/cli/models_command.h"
#include "services/cli/pin_command.h"
#include "services/cli/predict_command.h"
#include "services/cli/replay_command.h"
#include "services/cli/sign_command.h"
#include "services/cli/status_command.h"
#include "services/cli/train_command.h"
#include "services/cli/verify_command.h"

int main(int argc, char** argv) {
  millrace::TrainOptions train;
  millrace::PredictOptions predict;
  millrace::ExplainCommandOptions explain;
  millrace::ModelsOptions models;
  millrace::PinOptions pin;
  millrace::SignOptions sign;
  millrace::StatusOptions status;
  millrace::LoadTestOptions load_test;
  millrace::VerifyOptions verify;
  millrace::ReplayOptions replay;
  CLI::App app("Trains networks on many processes with reproducible bits, and serves what comes out.", "millrace");
  app.require_subcommand(1);
  CLI::App* const train_app = app.add_subcommand("train", "Train on a local cluster of processes, and serve");
  CLI::App* const predict_app = app.add_subcommand("predict", "Ask a model service about image files");
  CLI::App* const explain_app =
      app.add_subcommand("explain", "Show which pixels of images made a model answer as it does");
  CLI::App* const models_app = app.add_subcommand("models", "The versions of a model service, and how each is");
  CLI::App* const pin_app = app.add_subcommand("pin", "Have a model service serve one version, whatever is pushed");
  CLI::App* const rollback_app = app.add_subcommand("rollback", "Have a model service serve the version before");
  CLI::App* const sign_app = app.add_subcommand("sign", "Sign model versions, for services with --trusted-keys");
  CLI::App* const status_app = app.add_subcommand("status", "What every part does and waits for");
  CLI::App* const load_test_app = app.add_subcommand("load-test", "Measure a model service under load");
  CLI::App* const verify_app = app.add_subcommand("verify", "Train twice, once under faults, and compare the bits");
  CLI::App* const replay_app = app.add_subcommand("replay", "Make one step of a job again, and compare its gradients");
  millrace::AddTrainFlags(*train_app, train);
  millrace::AddPredictFlags(*predict_app, predict);
  millrace::AddExplainFlags(*explain_app, explain);
  millrace::AddModelsFlags(*models_app, models);
  millrace::AddPinFlags(*pin_app, pin);
  millrace::AddRollbackFlags(*rollback_app, pin);
  millrace::AddSignFlags(*sign_app, sign);
  millrace::AddStatusFlags(*status_app, status);
  millrace::AddLoadTestFlags(*load_test_app, load_test);
  millrace::AddVerifyFlags(*verify_app, verify);
  millrace::AddReplayFlags(*replay_app, replay);
  if (std::optional<int> exit_code = millrace::ParseCommandLine(app, argc, argv)) return *exit_code;

  if (train_app->parsed()) return millrace::RunTrain(train);
  if (predict_app->parsed()) return millrace::RunPredict(predict);
  if (explain_app->parsed()) return millrace::RunExplain(explain);
  if (models_app->parsed()) return millrace::RunModels(models);
  if (pin_app->parsed()) return millrace::RunPin(pin);
  if (rollback_app->parsed()) return millrace::RunRollback(pin);
  if (sign_app->parsed()) return millrace::RunSign(sign);
  if (verify_app->parsed()) {
    verify.train_flags = verify_app->remaining();
    return millrace::RunVerify(verify);
  }
  if (replay_app->parsed()) return millrace::RunReplay(replay);
  if (status_app->parsed()) return millrace::RunStatus(status);
  return millrace::RunLoadTest(load_test);
}
