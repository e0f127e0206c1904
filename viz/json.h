// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Writes JSON text, value by value. Strings may hold any bytes: what is not
// UTF-8 becomes U+FFFD, and the characters that mean something in HTML or
// JavaScript are escaped, so the text may stand anywhere in a page.
//
//   JsonWriter json;
//   json.BeginObject();
//   json.Key("sizes").BeginArray().Number(1).Number(2).EndArray();
//   json.EndObject();
//   json.text()  // {"sizes":[1,2]}

#ifndef MY_ALLOC_VIZ_JSON_H_
#define MY_ALLOC_VIZ_JSON_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace viz {

class JsonWriter {
 public:
  JsonWriter &BeginObject() {
    return Open('{');
  }
  JsonWriter &EndObject() {
    return Close('}');
  }
  JsonWriter &BeginArray() {
    return Open('[');
  }
  JsonWriter &EndArray() {
    return Close(']');
  }
  JsonWriter &Key(absl::string_view key);
  JsonWriter &String(absl::string_view value);
  // Above 2^53 readers may round.
  JsonWriter &Number(uint64_t value);
  JsonWriter &Bool(bool value);

  const std::string &text() const {
    return text_;
  }

 private:
  JsonWriter &Open(char bracket);
  JsonWriter &Close(char bracket);
  void Separate();
  void Quote(absl::string_view value);

  std::string text_;
  bool needs_comma_ = false;
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_JSON_H_
