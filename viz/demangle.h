// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#ifndef MY_ALLOC_VIZ_DEMANGLE_H_
#define MY_ALLOC_VIZ_DEMANGLE_H_

#include <string>

namespace viz {

// Returns the C++ name of a symbol, shortened, or the symbol if it is not a C++
// one, in any case without its version (`@@GLIBC_2.34`).
std::string Demangle(const std::string &versioned);

// Returns a C++ name without what the standard library's templates add to it
// by default:
//
//   std::map<int, std::__cxx11::basic_string<char, std::char_traits<char>,
//       std::allocator<char> >, std::less<int>, std::allocator<...> >::at
//   std::map<int, std::string>::at
std::string ShortenName(const std::string &name);

}  // namespace viz

#endif  // MY_ALLOC_VIZ_DEMANGLE_H_
