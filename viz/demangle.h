// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#ifndef MY_ALLOC_VIZ_DEMANGLE_H_
#define MY_ALLOC_VIZ_DEMANGLE_H_

#include <cxxabi.h>

#include <cstdlib>
#include <memory>
#include <string>

namespace viz {

// Returns the C++ name of a symbol, or the symbol if it is not a C++ one, in
// any case without its version (`@@GLIBC_2.34`).
inline std::string Demangle(const std::string &versioned) {
  constexpr size_t kLengthMax = 4096;
  const std::string symbol = versioned.substr(0, versioned.find('@'));
  if (symbol.compare(0, 2, "_Z") != 0 || symbol.size() > kLengthMax) {
    return symbol;
  }
  int status = 0;
  const std::unique_ptr<char, void (*)(void *)> name(
      abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status), free);
  return name == nullptr ? symbol : name.get();
}

}  // namespace viz

#endif  // MY_ALLOC_VIZ_DEMANGLE_H_
