#include "common/service_runtime.h"

#include <grpc/support/log.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <exception>
#include <map>
#include <utility>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/str_cat.h"
#include "common/address.h"
#include "common/clock.h"
#include "common/command_line.h"
#include "common/grpc_server.h"
#include "common/grpc_token.h"
#include "common/health_check.h"
#include "common/http_server.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status_macros.h"
#include "common/version.h"

namespace millrace {
namespace {

// How soon grpc.health.v1 follows a change of Ready().
constexpr absl::Duration kHealthInterval = absl::Milliseconds(200);

const std::map<std::string, LogLevel>& LogLevels() {
  static const auto* const levels = new std::map<std::string, LogLevel>{{"debug", LogLevel::kDebug},
                                                                        {"info", LogLevel::kInfo},
                                                                        {"warning", LogLevel::kWarning},
                                                                        {"error", LogLevel::kError}};
  return *levels;
}

// CLI11's validator protocol: the fault, or nothing.
std::string CheckAddress(const std::string& text) {
  const absl::Status status = text.empty() ? absl::OkStatus() : ParseAddress(text).status();
  return std::string(status.message());
}

void LogForGrpc(gpr_log_func_args* args) {
  switch (args->severity) {
    case GPR_LOG_SEVERITY_DEBUG:
      return LogDebug("gRPC", {{"text", args->message}});
    case GPR_LOG_SEVERITY_INFO:
      return LogInfo("gRPC", {{"text", args->message}});
    case GPR_LOG_SEVERITY_ERROR:
      return LogError("gRPC", {{"text", args->message}});
  }
}

void SetUpLogging(std::string_view name, const ServiceFlags& flags) {
  const auto level = LogLevels().find(flags.log_level);
  ConfigureLogging(name, level == LogLevels().end() ? LogLevel::kInfo : level->second,
                   flags.log_format == "json" ? LogFormat::kJson : LogFormat::kText);
  gpr_set_log_function(&LogForGrpc);
}

// The kernel kills this process when the thread that started it ends, however that happens: no orphans.
absl::Status EndWithParent(int parent_pid) {
  if (parent_pid == 0) return absl::OkStatus();
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // It may have ended before the kernel was told.
  if (getppid() == parent_pid) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("process ", parent_pid, ", named by --parent-pid, is not the parent"));
}

absl::Status CheckRunToken(const ServiceFlags& flags) {
  if (flags.run_token_file.empty()) return absl::OkStatus();
  // A service that asked for a token in plain text would have its callers show it.
  const bool asks = flags.asks_for_run_token && !flags.listen.empty();
  return CheckRunTokenFile(flags.run_token_file, asks ? flags.tls.shows_itself() : !flags.tls.empty());
}

absl::Status CheckSecurity(const ServiceFlags& flags) {
  MILLRACE_RETURN_IF_ERROR(CheckTlsFiles(flags.tls));
  MILLRACE_RETURN_IF_ERROR(CheckRunToken(flags));
  if (flags.tls.shows_itself() || flags.insecure) return absl::OkStatus();
  for (const auto& [flag, address] : {std::pair("--listen", &flags.listen), {"--http-listen", &flags.http_listen}}) {
    if (address->empty() || ParseAddress(*address).value().is_local()) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        flag, " ", *address,
        " would be plain text for everybody on the network: give --tls-cert and --tls-key, or say --insecure"));
  }
  return absl::OkStatus();
}

// The page's head is the same for every service.
std::string StatusPage(std::string_view name, absl::Time start, Service& service) {
  const absl::Status ready = service.Ready();
  return absl::StrCat(std::string(name), " ", std::string(Version()), ", up ",
                      absl::FormatDuration(absl::Trunc(RealClock().Now() - start, absl::Seconds(1))), ", ",
                      ready.ok() ? "ready" : absl::StrCat("not ready: ", ready.message()), "\n\n",
                      service.StatusPage());
}

// How other services are spoken to.
std::shared_ptr<grpc::ChannelCredentials> ChannelCredentialsOf(const ServiceFlags& flags) {
  std::shared_ptr<grpc::ChannelCredentials> credentials = MakeChannelCredentials(flags.tls);
  return flags.run_token_file.empty() ? credentials : ShowToken(credentials, flags.run_token_file);
}

// One run of a service; members are destroyed in reverse order: the listeners, then what they call.
class Runtime {
 public:
  Runtime(std::string_view name, const ServiceFlags& flags)
      : name_(name), flags_(flags), metrics_(name), context_(metrics_, signals_, ChannelCredentialsOf(flags)) {}

  absl::Status Run(const ServiceFactory& make_service) {
    MILLRACE_ASSIGN_OR_RETURN(service_, make_service(context_));
    MILLRACE_RETURN_IF_ERROR(StartListeners());
    MILLRACE_RETURN_IF_ERROR(service_->Started(addresses_));
    UpdateHealth();
    Announce();
    const int signal = WaitForEnd();
    Drain(signal);
    return context_.stop_reason();
  }

 private:
  absl::Status Ready() {
    if (draining_) return absl::UnavailableError("shutting down");
    return service_->Ready();
  }

  absl::Status StartListeners() {
    if (!flags_.listen.empty()) {
      GrpcServer::Options options{.address = flags_.listen, .metrics = &metrics_};
      if (flags_.tls.shows_itself()) options.credentials = MakeServerCredentials(flags_.tls);
      if (flags_.asks_for_run_token) options.token_file = flags_.run_token_file;
      if (flags_.connection_age_max_ms > 0) {
        options.connection_age_max = absl::Milliseconds(flags_.connection_age_max_ms);
      }
      MILLRACE_ASSIGN_OR_RETURN(grpc_, GrpcServer::Start(options, service_->GrpcServices()));
      addresses_.grpc = grpc_->address();
    }
    if (!flags_.http_listen.empty()) {
      HttpServer::Options options{.address = flags_.http_listen, .metrics = &metrics_, .tls = flags_.tls};
      options.ready = [this] { return Ready(); };
      options.status_page = [this] { return StatusPage(name_, start_, *service_); };
      options.api = service_->Api();
      MILLRACE_ASSIGN_OR_RETURN(http_, HttpServer::Start(std::move(options)));
      addresses_.http = http_->address();
    }
    return absl::OkStatus();
  }

  void Announce() {
    const auto shown = [](const std::string& address) { return address.empty() ? "-" : address.c_str(); };
    std::printf("LISTENING grpc=%s http=%s\n", shown(addresses_.grpc), shown(addresses_.http));
    std::fflush(stdout);
    LogInfo("started", {{"version", Version()},
                        {"grpc", addresses_.grpc},
                        {"http", addresses_.http},
                        {"seconds", absl::ToDoubleSeconds(RealClock().Now() - start_)}});
  }

  void UpdateHealth() {
    const bool ready = Ready().ok();
    const bool changed = ready != std::exchange(serving_, ready);
    if (grpc_ == nullptr) return;
    if (changed) {
      grpc_->SetServing(ready);
      for (auto& [_, serving] : health_names_) serving = ready;
    }
    if (!ready) return;
    const std::vector<std::string> names = service_->HealthNames();
    for (const std::string& name : names) health_names_.try_emplace(name, false);
    for (auto& [name, serving] : health_names_) {
      const bool now = std::find(names.begin(), names.end(), name) != names.end();
      if (now != std::exchange(serving, now)) grpc_->SetServing(name, now);
    }
  }

  int WaitForEnd() {
    int signal;
    while ((signal = signals_.WaitFor(kHealthInterval)) < 0) UpdateHealth();
    return signal;
  }

  void Drain(int signal) {
    LogInfo("draining", {{"reason", signal == 0 ? "own request" : signal == SIGINT ? "SIGINT" : "SIGTERM"}});
    draining_ = true;
    signals_.LetInterruptKill();
    const absl::Duration grace = absl::Milliseconds(flags_.drain_grace_ms);
    if (grpc_ != nullptr) grpc_->SetServing(false);
    service_->Drain(grace);
    if (grpc_ != nullptr) grpc_->Drain(grace);
    http_.reset();
    grpc_.reset();
    service_.reset();
    LogInfo("stopped");
  }

  const std::string name_;
  const ServiceFlags flags_;
  const absl::Time start_ = RealClock().Now();
  ShutdownSignals signals_;
  Metrics metrics_;
  ServiceContext context_;
  ListenAddresses addresses_;
  // What gRPC health says; main thread only.
  bool serving_ = false;
  std::map<std::string, bool> health_names_;
  std::atomic<bool> draining_ = false;
  std::unique_ptr<Service> service_;
  std::unique_ptr<GrpcServer> grpc_;
  std::unique_ptr<HttpServer> http_;
};

}  // namespace

void AddServiceFlags(CLI::App& app, ServiceFlags& flags) {
  const CLI::Validator address(CheckAddress, "HOST:PORT|unix:PATH", "address");
  if (!flags.listen.empty()) {
    app.add_option("--listen", flags.listen, "Where to answer gRPC; port 0 lets the system choose")
        ->capture_default_str()
        ->check(address);
  }
  app.add_option("--http-listen", flags.http_listen, "Where to answer /metrics, /healthz, /readyz and /statusz")
      ->capture_default_str()
      ->check(address);
  app.add_option("--log-level", flags.log_level, "Least level of log lines on stderr")
      ->capture_default_str()
      ->check(CLI::IsMember(LogLevels()));
  app.add_option("--log-format", flags.log_format, "Format of log lines")
      ->capture_default_str()
      ->check(CLI::IsMember({"text", "json"}));
  app.add_option("--drain-grace-ms", flags.drain_grace_ms, "Time for calls in flight to end after SIGTERM")
      ->capture_default_str()
      ->check(CLI::Range(0, 600'000));
  AddTlsFlags(app, flags.tls);
  app.add_option("--run-token-file", flags.run_token_file,
                 flags.asks_for_run_token
                     ? "File with the token that the parts of one training run show each other at every call; needs TLS"
                     : "File with the training run's token, to show it to --source; needs TLS");
  app.add_flag("--insecure", flags.insecure, "Listen in plain text also where others than this machine can listen in");
  app.add_option("--parent-pid", flags.parent_pid, "Be killed when this process, which must be the parent, ends")
      ->check(CLI::Range(1, 1 << 22));
  // Last: callbacks run in this order, and this one needs what the others have read.
  app.add_flag_callback(
      "--healthcheck",
      [&flags, name = app.get_name()] {
        const absl::Status status = AskHealth(flags.http_listen, flags.tls.shows_itself());
        if (!status.ok()) std::fprintf(stderr, "%s: %s\n", name.c_str(), std::string(status.message()).c_str());
        throw CLI::RuntimeError(ExitCodeFor(status));
      },
      "Ask the service that runs with these --http-listen and --tls-cert whether it is alive, and exit");
}

void ServiceContext::RequestStop(absl::Status why) {
  {
    MutexLock lock(&mutex_);
    if (stop_requested_) return;
    stop_requested_ = true;
    stop_reason_ = std::move(why);
  }
  signals_.Request();
}

absl::Status ServiceContext::stop_reason() const {
  MutexLock lock(&mutex_);
  return stop_reason_;
}

int RunService(std::string_view name, const ServiceFlags& flags, const ServiceFactory& make_service) {
  SetUpLogging(name, flags);
  absl::Status status = CheckSecurity(flags);
  if (status.ok()) status = EndWithParent(flags.parent_pid);
  try {
    if (status.ok()) status = Runtime(name, flags).Run(make_service);
  } catch (const std::exception& error) {
    status = absl::InternalError(error.what());
  }
  if (!status.ok()) {
    LogError(std::string(status.message()), {{"code", absl::StatusCodeToString(status.code())}});
  }
  return ExitCodeFor(status);
}

}  // namespace millrace
