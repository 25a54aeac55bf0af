#include "services/model/page.h"

#include <string>
#include <string_view>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/hashing.h"
#include "common/strings.h"
#include "services/model/page_html.h"

namespace millrace {
namespace {

// Of what is between <tag> and </tag>, as Content-Security-Policy has it.
std::string SourceHash(std::string_view html, std::string_view tag) {
  const std::string open = absl::StrCat("<", ToAbsl(tag), ">"), close = absl::StrCat("</", ToAbsl(tag), ">");
  const size_t begin = html.find(open) + open.size();
  const std::string_view source = html.substr(begin, html.find(close, begin) - begin);
  return absl::StrCat("'sha256-", absl::Base64Escape(absl::HexStringToBytes(Sha256Hex(source))), "'");
}

struct Page {
  std::string etag = absl::StrCat("\"", Sha256Hex(kPageHtml), "\"");
  std::string policy =
      absl::StrCat("default-src 'none'; script-src ", SourceHash(kPageHtml, "script"), "; style-src ",
                   SourceHash(kPageHtml, "style"),
                   "; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
};

}  // namespace

HttpResponse AnswerPage(const HttpRequest& request) {
  static const Page page;
  const auto known = request.headers.find("if-none-match");
  const bool same = known != request.headers.end() && known->second == page.etag;
  HttpResponse response{.status = same ? 304 : 200, .content_type = "text/html; charset=utf-8"};
  if (!same) response.body = kPageHtml;
  response.headers = {{"ETag", page.etag},
                      {"Cache-Control", "no-cache"},
                      {"Content-Security-Policy", page.policy},
                      {"X-Content-Type-Options", "nosniff"},
                      {"Referrer-Policy", "no-referrer"}};
  return response;
}

}  // namespace millrace
