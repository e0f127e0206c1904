// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Any string as an option's value is one of its choices or is complained
// about, in one printable line of bounded length.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "heap/option.h"

namespace {

constexpr size_t kLineMax = 200;

void Require(bool condition) {
  if (!condition) {
    std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes) {
  if (size_bytes == 0) {
    return 0;
  }
  const auto option = static_cast<heap_option_t>(data[0] % HEAP_OPTION_COUNT);
  const std::string value(reinterpret_cast<const char *>(data) + 1,
                          size_bytes - 1);
  const heap_choice_t choice = heap_option_parse(option, value.c_str());
  Require(choice >= 0 && choice <= HEAP_CHOICE_UNKNOWN);
  char buffer[kLineMax];
  heap_text_t text = {buffer, sizeof(buffer), 0};
  heap_option_add_complaint(option, value.c_str(), &text);
  Require(text.length <= sizeof(buffer) && buffer[text.length - 1] == '\n');
  for (size_t i = 0; i + 1 < text.length; ++i) {
    Require(buffer[i] >= ' ' && buffer[i] <= '~');
  }
  // A value that is shown whole is a choice exactly when the complaint's list
  // has it.
  const std::string line(buffer, text.length - 1);
  const size_t list = line.find("; it can be ");
  const std::string shown = value.c_str();
  if (list != std::string::npos && !shown.empty() &&
      shown.find_first_of(", ") == std::string::npos) {
    const std::string choices = ", " + line.substr(list + 12) + ", ";
    Require((choices.find(", " + shown + ", ") != std::string::npos) ==
            (choice != HEAP_CHOICE_UNKNOWN));
  }
  return 0;
}
