// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/option.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace {

std::string ComplaintAbout(heap_option_t option, const std::string &value) {
  char buffer[256];
  heap_text_t text = {buffer, sizeof(buffer), 0};
  heap_option_add_complaint(option, value.c_str(), &text);
  EXPECT_LE(text.length, sizeof(buffer));
  return std::string(buffer, text.length);
}

TEST(OptionTest, EachChoiceIsRead) {
  EXPECT_EQ(heap_option_parse(HEAP_OPTION_SOURCE, "brk"), HEAP_SOURCE_BRK);
  EXPECT_EQ(heap_option_parse(HEAP_OPTION_SOURCE, "mmap"), HEAP_SOURCE_MMAP);
  EXPECT_EQ(heap_option_parse(HEAP_OPTION_ON_ERROR, "abort"),
            HEAP_ON_ERROR_ABORT);
  EXPECT_EQ(heap_option_parse(HEAP_OPTION_ON_ERROR, "report"),
            HEAP_ON_ERROR_REPORT);
  EXPECT_EQ(heap_option_parse(HEAP_OPTION_STATS, "0"), HEAP_STATS_NO);
  EXPECT_EQ(heap_option_parse(HEAP_OPTION_STATS, "1"), HEAP_STATS_AS_TEXT);
  EXPECT_EQ(heap_option_parse(HEAP_OPTION_STATS, "json"), HEAP_STATS_AS_JSON);
  EXPECT_EQ(heap_option_parse(HEAP_OPTION_HELP, "0"), HEAP_HELP_NO);
  EXPECT_EQ(heap_option_parse(HEAP_OPTION_HELP, "1"), HEAP_HELP_YES);
}

TEST(OptionTest, NothingIsTheDefault) {
  for (int i = 0; i < HEAP_OPTION_COUNT; ++i) {
    const auto option = static_cast<heap_option_t>(i);
    EXPECT_EQ(heap_option_parse(option, nullptr), 0);
    EXPECT_EQ(heap_option_parse(option, ""), 0);
  }
}

TEST(OptionTest, AlmostAChoiceIsUnknown) {
  for (const char *value :
       {"BRK", "brk ", " mmap", "mma", "mmapp", "1", "\n"}) {
    EXPECT_EQ(heap_option_parse(HEAP_OPTION_SOURCE, value), HEAP_CHOICE_UNKNOWN)
        << value;
  }
}

TEST(OptionTest, UnknownValueInTheEnvironmentIsTheDefault) {
  ASSERT_EQ(setenv("HEAP_SOURCE", "mmap", 1), 0);
  EXPECT_EQ(heap_option_get(HEAP_OPTION_SOURCE), HEAP_SOURCE_MMAP);
  ASSERT_EQ(setenv("HEAP_SOURCE", "sbrk", 1), 0);
  EXPECT_EQ(heap_option_get(HEAP_OPTION_SOURCE), HEAP_SOURCE_BRK);
  unsetenv("HEAP_SOURCE");
  EXPECT_EQ(heap_option_get(HEAP_OPTION_SOURCE), HEAP_SOURCE_BRK);
}

TEST(OptionTest, ComplaintNamesVariableValueAndChoices) {
  EXPECT_EQ(ComplaintAbout(HEAP_OPTION_STATS, "yes"),
            "my_alloc heap: HEAP_STATS=yes is ignored; it can be 0, 1, json\n");
}

TEST(OptionTest, ComplaintIsOneShortPrintableLine) {
  EXPECT_EQ(ComplaintAbout(HEAP_OPTION_SOURCE, "\x1b[2J\n\xff"),
            "my_alloc heap: HEAP_SOURCE=?[2J?? is ignored; it can be brk, "
            "mmap\n");
  const std::string cut =
      ComplaintAbout(HEAP_OPTION_SOURCE, std::string(100000, 'a'));
  EXPECT_EQ(cut, "my_alloc heap: HEAP_SOURCE=" + std::string(64, 'a') +
                     "... is ignored; it can be brk, mmap\n");
}

TEST(OptionTest, ComplaintsAreWrittenForUnknownValuesOnly) {
  ASSERT_EQ(setenv("HEAP_SOURCE", "mmap", 1), 0);
  ASSERT_EQ(setenv("HEAP_HELP", "2", 1), 0);
  testing::internal::CaptureStderr();
  heap_option_complain();
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "my_alloc heap: HEAP_HELP=2 is ignored; it can be 0, 1\n");
  unsetenv("HEAP_SOURCE");
  unsetenv("HEAP_HELP");
}

}  // namespace
