// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The page as a file: that it is whole, small, asks for nothing, and that what
// a log says cannot become part of its markup.

#include "viz/report.h"

#include <zlib.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "viz/fake_source.h"
#include "viz/page.h"
#include "viz/sha256.h"

namespace viz {
namespace {

// What is between two marks.
std::string Between(const std::string &text, const std::string &begin,
                    const std::string &end) {
  const size_t from = text.find(begin);
  if (from == std::string::npos) {
    return "";
  }
  const size_t start = from + begin.size();
  return text.substr(start, text.find(end, start) - start);
}

std::string Inflate(const std::string &bytes) {
  std::string out(1 << 24, '\0');
  uLongf size = out.size();
  EXPECT_EQ(
      uncompress(reinterpret_cast<Bytef *>(&out[0]), &size,
                 reinterpret_cast<const Bytef *>(bytes.data()), bytes.size()),
      Z_OK);
  out.resize(size);
  return out;
}

// The JSON of the page's data.
std::string Head(const std::string &page) {
  std::string data;
  EXPECT_TRUE(
      absl::Base64Unescape(Between(page, "id=\"data\">", "</script>"), &data));
  uint32_t size = 0;
  for (int i = 3; i >= 0; --i) {
    size = size << 8 | static_cast<unsigned char>(data[static_cast<size_t>(i)]);
  }
  return Inflate(data.substr(4, size));
}

TEST(ReportTest, EmptyLogMakesAPage) {
  FakeSource source({});
  const ReportResult report = MakeReport(&source, "a.heaplog", ReportLimits());
  EXPECT_TRUE(absl::StartsWith(report.page, "<!doctype html>"));
  EXPECT_TRUE(absl::EndsWith(report.page, "</html>\n"));
  EXPECT_EQ(report.error, "");
  EXPECT_EQ(report.top_site, "");
}

TEST(ReportTest, FiguresAreInTheHead) {
  FakeSource source(RandomEvents(RandomEventsOptions()));
  const ReportResult report = MakeReport(&source, "a.heaplog", ReportLimits());
  const std::string head = Head(report.page);
  EXPECT_TRUE(absl::StrContains(
      head, absl::StrCat("\"peakLiveBytes\":", report.totals.peak_live_bytes)));
  EXPECT_TRUE(absl::StrContains(head, "\"passesAgree\":true"));
}

TEST(ReportTest, ErrorOfTheLogIsInThePage) {
  FakeSource source(RandomEvents(RandomEventsOptions()));
  source.SetError("byte 77: cut");
  const ReportResult report = MakeReport(&source, "a.heaplog", ReportLimits());
  EXPECT_EQ(report.error, "byte 77: cut");
  EXPECT_TRUE(absl::StrContains(Head(report.page), "byte 77: cut"));
}

TEST(ReportTest, PolicyNamesExactlyTheScriptsAndStylesOfThePage) {
  const std::string page = MakePage("data");
  const std::string policy =
      Between(page, "Content-Security-Policy\" content=\"", "\"");
  EXPECT_TRUE(absl::StartsWith(policy, "default-src 'none';"));
  size_t scripts = 0;
  for (size_t at = 0; (at = page.find("<script>", at)) != std::string::npos;
       ++at) {
    const size_t start = at + 8;
    const std::string text =
        page.substr(start, page.find("</script>", start) - start);
    EXPECT_TRUE(absl::StrContains(
        policy, "'sha256-" + absl::Base64Escape(Sha256(text)) + "'"));
    ++scripts;
  }
  EXPECT_EQ(scripts, 2u);
  EXPECT_TRUE(absl::StrContains(
      policy, "style-src 'sha256-" + absl::Base64Escape(Sha256(Between(
                                         page, "<style>", "</style>")))));
  for (const char *loose : {"unsafe", "http:", "https:", "data:", "*"}) {
    EXPECT_FALSE(absl::StrContains(policy, loose)) << loose;
  }
}

TEST(ReportTest, PageRefersToNothingOutside) {
  const std::string page = MakePage("data");
  for (const char *reference :
       {"src=\"", "href=\"", "url(", "@import", "<link", "<iframe", "<img",
        "fetch(", "XMLHttpRequest", "WebSocket", "import("}) {
    EXPECT_FALSE(absl::StrContains(page, reference)) << reference;
  }
}

TEST(ReportTest, LicenceOfUplotIsInThePage) {
  const std::string page = MakePage("");
  EXPECT_TRUE(absl::StrContains(page, "The MIT License"));
  EXPECT_TRUE(absl::StrContains(page, "Permission is hereby granted"));
}

TEST(ReportTest, HostileStringsStayData) {
  const std::string hostile =
      "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&`\xff";
  FakeSource source(RandomEvents(RandomEventsOptions()));
  source.process()->executable = hostile;
  source.process()->arguments = {hostile, hostile};
  source.SetError(hostile);
  heaplog_thread_t thread = {};
  hostile.copy(thread.name, sizeof(thread.name));  // Without a NUL.
  source.threads()->push_back(thread);
  Module module;
  module.path = hostile;
  module.start_address = 0x400000;
  module.end_address = 0x500000;
  source.modules()->push_back(module);
  for (uint32_t id = 1; id <= 20; ++id) {
    source.SetStack(id, 0, 0x400000 + id * 16);
  }
  const ReportResult report = MakeReport(&source, hostile, ReportLimits());
  EXPECT_FALSE(absl::StrContains(report.page, "alert"));
  const std::string head = Head(report.page);
  EXPECT_TRUE(absl::StrContains(head, "alert(1)"));
  for (const char c : {'<', '>', '&', '\'', '`'}) {
    EXPECT_EQ(head.find(c) == std::string::npos, c != '`') << c;
  }
}

TEST(ReportTest, PageStaysSmallHoweverManyEvents) {
  // Churn of blocks all over the heap, the worst there is for a map.
  std::mt19937_64 random(1);
  std::vector<bool> is_live(100000);
  std::vector<heaplog_event_t> events;
  for (uint64_t i = 0; i < 600000; ++i) {
    const size_t slot = random() % is_live.size();
    heaplog_event_t event = {};
    event.kind = is_live[slot] ? HEAPLOG_FREE : HEAPLOG_ALLOC;
    event.time_ns = i * 100;
    event.address = 0x10000 + slot * 256;
    if (!is_live[slot]) {
      event.size_bytes = event.usable_bytes = random() % 256;
      event.stack_id = 1 + random() % 150;
    }
    events.push_back(event);
    is_live[slot] = !is_live[slot];
  }
  FakeSource source(events);
  for (uint32_t id = 1; id <= 150; ++id) {
    source.SetStack(id, id / 3, 0x400000 + id * 16);
  }
  const ReportResult report = MakeReport(&source, "a.heaplog", ReportLimits());
  EXPECT_LT(report.page.size(), 8u << 20);
}

}  // namespace
}  // namespace viz
