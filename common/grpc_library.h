#pragma once

namespace millrace {

// Keeps the gRPC library up until the process ends. Without this it shuts itself down with the last channel or server,
// and starts again with the next; each such shutdown can take 10 seconds (gRPC 1.51 joins a thread that polls for as
// long). And takes from gRPC's locks the deadlock detector that distributions' builds of Abseil leave on: it keeps a
// graph of all locks, under a lock. GrpcServer and MakeChannel call it; any number of calls, any thread.
void KeepGrpcUp();

}  // namespace millrace
