#pragma once

namespace millrace {

// From now on the calling thread, and threads that it starts, get what other threads leave of a busy processor (a
// tenth, if they take all they can): for work that nobody waits for. A hint: where the system refuses it, nothing
// changes. There is no way back, so only for threads of one's own.
void LowerThreadPriority();

}  // namespace millrace
