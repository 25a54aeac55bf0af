// The page to draw on: page.html, which is built into the program.
#pragma once

#include "common/http_server.h"

namespace millrace {

// Any thread; GET only. The page may run and show what is in it, may talk to whom it came from, and nothing else. It is
// asked for again at every visit, and 304 if it is the same.
HttpResponse AnswerPage(const HttpRequest& request);

}  // namespace millrace
