#pragma once

namespace millrace {

// From now on the calling thread, and threads that it starts, get what other threads leave of a busy processor (a
// tenth, if they take all they can): for work that nobody waits for. A hint: where the system refuses it, nothing
// changes. There is no way back, so only for threads of one's own.
void LowerThreadPriority();

// Whether from now on the calling thread, when there is something for it to do, lets others on a busy processor finish
// their turn, of some milliseconds, and then does all that has come meanwhile. That costs both sides less than a turn
// for each thing. Threads that it starts begin as it is. A hint, as above.
void AvoidInterrupting(bool avoid);

}  // namespace millrace
