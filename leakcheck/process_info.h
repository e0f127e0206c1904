// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// process_info: what /proc says about the calling process, read with plain
// system calls: usable inside malloc, before libc is initialised and in a
// forked child. Nothing here allocates; `errno` is changed.

#ifndef MY_ALLOC_LEAKCHECK_PROCESS_INFO_H_
#define MY_ALLOC_LEAKCHECK_PROCESS_INFO_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Reads at most `capacity` bytes from the start of a file. Returns how many,
// or -1.
ptrdiff_t process_info_read(const char *path, void *out_bytes, size_t capacity);

// Stores the path of the running program, "" when it cannot be known.
// `capacity` is at least 1; longer paths are cut.
void process_info_executable(char *out_path, size_t capacity);

// Stores the path of the file that is mapped at `address` (or the kernel's name
// for it, as "[vdso]"). False when there is none. `capacity` should be 100 more
// than the longest path of interest; `*out_path` changes in any case.
bool process_info_mapped_file(uintptr_t address, char *out_path,
                              size_t capacity);

// Holds a name and a path, and more.
#define PROCESS_INFO_VARIABLE_BYTES_MAX 4351u

// Calls `visit` for each NAME=value of the environment the process was started
// with whose name begins with `prefix`. The text lives during the call only.
// One that is longer than PROCESS_INFO_VARIABLE_BYTES_MAX may be cut to that
// length, or be whole.
void process_info_environment(const char *prefix,
                              void (*visit)(void *context, const char *entry),
                              void *context);

// Returns the bytes that the process has in RAM, 0 when not known.
uint64_t process_info_resident_bytes(void);

// Returns when the process began, in nanoseconds since 1970, to within a few
// hundredths of a second (exec does not change it). 0 when not known.
uint64_t process_info_start_unix_ns(void);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_PROCESS_INFO_H_
