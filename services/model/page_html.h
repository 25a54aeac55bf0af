#pragma once

#include <string_view>

namespace millrace {

extern const std::string_view kPageHtml;

}  // namespace millrace
