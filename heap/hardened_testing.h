// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the tests of the hardened variant share.

#ifndef MY_ALLOC_HEAP_HARDENED_TESTING_H_
#define MY_ALLOC_HEAP_HARDENED_TESTING_H_

#include <cstdint>
#include <functional>

// thread_heap.h and fatal.h are for C only.
struct heap_thread;
extern "C" heap_thread *heap_thread_get_existing(void);
extern "C" uint64_t heap_misuse_count(void);

namespace heap_testing {

inline uintptr_t AddressOf(const void *ptr) {
  return reinterpret_cast<uintptr_t>(ptr);
}

// Runs in a process whose heap nobody has used, with this HEAP_HARDEN.
void RunHardened(const char *list, const std::function<void()> &body);

// Has misuse counted, and nothing printed.
void ReportSilently();

// A read of the address is to fault.
void ExpectFault(uintptr_t address);

// Writes one byte, as a program would, where memory is; the kernel says where.
bool WriteByte(void *ptr);

}  // namespace heap_testing

#endif  // MY_ALLOC_HEAP_HARDENED_TESTING_H_
