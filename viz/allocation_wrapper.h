// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Which functions, by their names, a report does not blame for memory: those
// that only get it for their callers. Names are as Demangle() makes them.

#ifndef MY_ALLOC_VIZ_ALLOCATION_WRAPPER_H_
#define MY_ALLOC_VIZ_ALLOCATION_WRAPPER_H_

#include <string>

namespace viz {

// Functions whose only business is to get memory for their callers: malloc and
// its like, operator new, allocators, and those of widespread libraries.
bool IsAllocationWrapper(const std::string &function);

// These, and all else of the C++ standard library: who fills a std::vector is
// worth knowing, not that it is filled by _M_realloc_insert().
bool IsNoSite(const std::string &function);

// Functions that every program or thread begins in, so that being called from
// them tells nothing.
bool IsBeginning(const std::string &function);

}  // namespace viz

#endif  // MY_ALLOC_VIZ_ALLOCATION_WRAPPER_H_
