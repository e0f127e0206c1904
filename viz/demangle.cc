// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Names are shortened character by character, with a stack of the brackets
// that are open: an argument such as std::allocator<int> is left out only where
// it is one of a template's, behind others, and not one of a function's. The
// signs of an operator's name are no brackets.

#include "viz/demangle.h"

#include <cxxabi.h>

#include <cstdlib>
#include <cstring>
#include <memory>

namespace viz {
namespace {

constexpr size_t kLengthMax = 4096;

// Template arguments that have a default in the standard library.
constexpr const char *kDefaults[] = {
    "std::allocator<", "std::char_traits<", "std::default_delete<",
    "std::deque<",     "std::equal_to<",    "std::hash<",
    "std::less<",
};

bool StartsAt(const std::string &text, size_t at, const char *wanted) {
  return text.compare(at, strlen(wanted), wanted) == 0;
}

// Returns the first position behind the bracket that closes the one at `at`,
// or npos.
size_t BehindBracket(const std::string &text, size_t at) {
  size_t depth = 0;
  for (; at < text.size(); ++at) {
    if (text[at] == '<' || text[at] == '(') {
      ++depth;
    } else if ((text[at] == '>' && text[at - 1] != '-') || text[at] == ')') {
      if (--depth == 0) {
        return at + 1;
      }
    }
  }
  return std::string::npos;
}

// Returns where an argument with a default ends that starts at `at`, or npos.
size_t DefaultEnd(const std::string &text, size_t at) {
  for (const char *argument : kDefaults) {
    if (!StartsAt(text, at, argument)) {
      continue;
    }
    const size_t end = BehindBracket(text, at + strlen(argument) - 1);
    // The last one of the template, or another one follows.
    if (end < text.size() &&
        (text[end] == ',' || text[end] == '>' || StartsAt(text, end, " >"))) {
      return end;
    }
  }
  return std::string::npos;
}

// Returns where the signs end that follow the word operator, which ends at
// `at`.
size_t OperatorEnd(const std::string &text, size_t at) {
  if (StartsAt(text, at, "()")) {
    return at + 2;
  }
  const size_t end = text.find_first_not_of("<>=-!|&^+*/%,~", at);
  return end == std::string::npos ? text.size() : end;
}

void ReplaceAll(std::string *text, const char *from, const char *to) {
  for (size_t at = 0; (at = text->find(from, at)) != std::string::npos;) {
    text->replace(at, strlen(from), to);
  }
}

std::string WithoutDefaults(const std::string &name) {
  std::string out;
  std::string open;  // Brackets.
  for (size_t at = 0; at < name.size();) {
    if (StartsAt(name, at, "operator")) {
      const size_t end = OperatorEnd(name, at + strlen("operator"));
      out.append(name, at, end - at);
      at = end;
      continue;
    }
    if (StartsAt(name, at, ", ") && !open.empty() && open.back() == '<') {
      const size_t end = DefaultEnd(name, at + 2);
      if (end != std::string::npos) {
        at = StartsAt(name, end, " >") ? end + 1 : end;
        continue;
      }
    }
    const char c = name[at];
    if (c == '<' || c == '(') {
      open += c;
    } else if ((c == '>' || c == ')') && !open.empty() &&
               !(c == '>' && at > 0 && name[at - 1] == '-')) {
      open.pop_back();
    }
    out += c;
    ++at;
  }
  return out;
}

}  // namespace

std::string ShortenName(const std::string &name) {
  std::string text = name;
  ReplaceAll(&text, "std::__cxx11::", "std::");
  text = WithoutDefaults(text);
  ReplaceAll(&text, "std::basic_string<char>", "std::string");
  ReplaceAll(&text, "std::basic_string_view<char>", "std::string_view");
  ReplaceAll(&text, "[abi:cxx11]", "");
  ReplaceAll(&text, "> >", ">>");
  return text;
}

std::string Demangle(const std::string &versioned) {
  const std::string symbol = versioned.substr(0, versioned.find('@'));
  if (symbol.compare(0, 2, "_Z") != 0 || symbol.size() > kLengthMax) {
    return symbol;
  }
  int status = 0;
  const std::unique_ptr<char, void (*)(void *)> name(
      abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status), free);
  return name == nullptr ? symbol : ShortenName(name.get());
}

}  // namespace viz
