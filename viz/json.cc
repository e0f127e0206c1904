// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/json.h"

#include <cstdio>

#include "absl/strings/str_cat.h"

namespace viz {
namespace {

// Returns how many bytes the UTF-8 character at the start of `text` has, 0 if
// there is none: overlong forms, surrogates and what is above U+10FFFF are not
// characters.
size_t Utf8Length(absl::string_view text) {
  const auto byte = [text](size_t i) -> unsigned {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0;
  };
  const auto continues = [byte](size_t first, size_t count) {
    for (size_t i = first; i < first + count; ++i) {
      if ((byte(i) & 0xc0) != 0x80) {
        return false;
      }
    }
    return true;
  };
  const unsigned lead = byte(0);
  if (lead < 0x80) {
    return 1;
  }
  if (lead >= 0xc2 && lead <= 0xdf) {
    return continues(1, 1) ? 2 : 0;
  }
  if (lead >= 0xe0 && lead <= 0xef) {
    const bool overlong = lead == 0xe0 && byte(1) < 0xa0;
    const bool surrogate = lead == 0xed && byte(1) > 0x9f;
    return !overlong && !surrogate && continues(1, 2) ? 3 : 0;
  }
  if (lead >= 0xf0 && lead <= 0xf4) {
    const bool overlong = lead == 0xf0 && byte(1) < 0x90;
    const bool beyond = lead == 0xf4 && byte(1) > 0x8f;
    return !overlong && !beyond && continues(1, 3) ? 4 : 0;
  }
  return 0;
}

bool IsPlain(unsigned char c) {
  return c >= 0x20 && c < 0x7f && c != '"' && c != '\\' && c != '<' &&
         c != '>' && c != '&' && c != '\'';
}

}  // namespace

JsonWriter &JsonWriter::Open(char bracket) {
  Separate();
  text_ += bracket;
  needs_comma_ = false;
  return *this;
}

JsonWriter &JsonWriter::Close(char bracket) {
  text_ += bracket;
  needs_comma_ = true;
  return *this;
}

void JsonWriter::Separate() {
  if (needs_comma_) {
    text_ += ',';
  }
  needs_comma_ = true;
}

JsonWriter &JsonWriter::Key(absl::string_view key) {
  Separate();
  Quote(key);
  text_ += ':';
  needs_comma_ = false;
  return *this;
}

JsonWriter &JsonWriter::String(absl::string_view value) {
  Separate();
  Quote(value);
  return *this;
}

JsonWriter &JsonWriter::Number(uint64_t value) {
  Separate();
  absl::StrAppend(&text_, value);
  return *this;
}

JsonWriter &JsonWriter::Bool(bool value) {
  Separate();
  text_ += value ? "true" : "false";
  return *this;
}

void JsonWriter::Quote(absl::string_view value) {
  text_ += '"';
  while (!value.empty()) {
    const auto c = static_cast<unsigned char>(value[0]);
    size_t length = 1;
    if (IsPlain(c)) {
      text_ += value[0];
    } else if (c < 0x80) {
      char escape[8];
      snprintf(escape, sizeof(escape), "\\u%04x", c);
      text_ += escape;
    } else if ((length = Utf8Length(value)) != 0) {
      text_.append(value.data(), length);
    } else {
      text_ += "\\ufffd";
      length = 1;
    }
    value.remove_prefix(length);
  }
  text_ += '"';
}

}  // namespace viz
