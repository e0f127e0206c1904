// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// heaplog: the log of what a program did with its heap. This header holds the
// words that the writer (heaplog_writer.h) and the reader (heaplog_reader.h)
// share; docs/heaplog.md describes the bytes on disk.
//
// A log holds *events*, which have a time and come out of the reader in one
// order, and *definitions* (call stacks, modules, threads, the process), which
// events refer to by number.
//
// Times are CLOCK_MONOTONIC nanoseconds. The writer is given them absolute;
// the reader gives them since the start of the log, which is event time 0 and
// `heaplog_info_t.start_monotonic_ns` absolute.

#ifndef MY_ALLOC_LEAKCHECK_HEAPLOG_H_
#define MY_ALLOC_LEAKCHECK_HEAPLOG_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// The version this code writes. A reader refuses another major version and
// reads any minor one, skipping the records it does not know.
#define HEAPLOG_VERSION_MAJOR 1
#define HEAPLOG_VERSION_MINOR 0

// Stack ids are 1 .. HEAPLOG_STACK_ID_MAX; 0 means "no stack".
#define HEAPLOG_STACK_ID_MAX ((1u << 24) - 1)
// Longer paths and command lines are cut by the writer, refused by the reader.
#define HEAPLOG_PATH_BYTES_MAX 4096u
#define HEAPLOG_COMMAND_LINE_BYTES_MAX 16384u
#define HEAPLOG_BUILD_ID_BYTES_MAX 32u
// With the terminating NUL, as the kernel has it.
#define HEAPLOG_THREAD_NAME_BYTES 16u

typedef enum heaplog_kind {
  // A block was handed out: address, size_bytes, usable_bytes, stack_id.
  HEAPLOG_ALLOC = 1,
  // A block is about to become free: address, stack_id (0 when not recorded).
  HEAPLOG_FREE = 2,
  // A block's requested size changed in place: address, size_bytes (the new
  // one), usable_bytes (the new one), stack_id.
  HEAPLOG_RESIZE = 3,
  // The heap got [address, address + size_bytes) from the kernel.
  HEAPLOG_MAP = 4,
  // The heap gave [address, address + size_bytes) back.
  HEAPLOG_UNMAP = 5,
  // The process's resident set was size_bytes.
  HEAPLOG_SAMPLE = 6,
  // size_bytes events could not be written since the previous event of this
  // thread (disk full). What they did is unknown: expect frees of blocks never
  // seen allocated, and allocations of addresses that seem taken.
  HEAPLOG_LOST = 7,
  // The process ended in an orderly way. Other threads' events may follow.
  HEAPLOG_END = 8,
} heaplog_kind_t;

// One event. Fields that the kind's comment does not name are 0.
typedef struct heaplog_event {
  uint64_t time_ns;       // Since the start of the log.
  uint64_t address;       // Of the block or range.
  uint64_t size_bytes;    // As the program requested.
  uint64_t usable_bytes;  // What the block can hold; >= size_bytes.
  uint32_t stack_id;      // See heaplog_reader_stack().
  uint32_t thread_index;  // See heaplog_reader_thread().
  uint32_t kind;          // heaplog_kind_t.
  uint32_t reserved;      // 0.
} heaplog_event_t;

// A loaded ELF object.
typedef struct heaplog_module {
  uint32_t id;              // The recorder's number; unique in the log.
  uint32_t build_id_bytes;  // 0 when the module has none.
  uint64_t start_address;   // Of the mapped range.
  uint64_t end_address;     // One past it.
  uint64_t load_bias;       // Run-time address minus address in the file.
  uint64_t load_time_ns;
  uint64_t unload_time_ns;  // UINT64_MAX while loaded; the writer ignores it.
  const char *path;         // NUL-terminated, at most HEAPLOG_PATH_BYTES_MAX.
  uint8_t build_id[HEAPLOG_BUILD_ID_BYTES_MAX];
} heaplog_module_t;

typedef struct heaplog_thread {
  uint64_t tid;  // The kernel's thread id; may recur after a thread's end.
  uint64_t start_time_ns;
  uint64_t end_time_ns;  // UINT64_MAX when its end is not in the log.
  char name[HEAPLOG_THREAD_NAME_BYTES];
} heaplog_thread_t;

// What the log says about itself and its process.
typedef struct heaplog_info {
  uint32_t version_major;
  uint32_t version_minor;
  uint64_t pid;
  uint64_t page_bytes;          // The system's page size.
  uint64_t start_monotonic_ns;  // Event time 0, absolute.
  uint64_t start_unix_ns;       // The same instant, since 1970 UTC.
  uint64_t file_bytes;          // When the reader opened it.
  uint64_t lost_count;          // Events that could not be written.
  const char *executable;       // "" until a PROCESS record is met.
  const char *command_line;     // Arguments, each with its NUL.
  size_t command_line_bytes;    // All of them, with their NULs.
  bool clean_end;               // An END was met.
} heaplog_info_t;

typedef enum heaplog_error_code {
  HEAPLOG_OK = 0,
  HEAPLOG_ERROR_SYSTEM = 1,     // A system call failed; see `status`.
  HEAPLOG_ERROR_NO_MEMORY = 2,  // The reader could not allocate.
  HEAPLOG_ERROR_NOT_A_LOG = 3,  // The magic bytes are not there.
  HEAPLOG_ERROR_VERSION = 4,    // A major version this code cannot read.
  HEAPLOG_ERROR_HEADER = 5,     // The file header is damaged or nonsense.
  HEAPLOG_ERROR_TRUNCATED = 6,  // The file ends before the log does.
  HEAPLOG_ERROR_CHECKSUM = 7,   // A chunk's bytes are not those committed.
  HEAPLOG_ERROR_CHUNK = 8,      // A chunk header contradicts its neighbours.
  HEAPLOG_ERROR_RECORD = 9,     // A record is malformed.
  HEAPLOG_ERROR_LIMIT = 10,     // More of something than readers must accept.
} heaplog_error_code_t;

typedef struct heaplog_error {
  heaplog_error_code_t code;
  int status;            // The -errno that the failed function returned.
  uint64_t byte_offset;  // In the file, of what is wrong.
  char text[160];        // One line for people, NUL-terminated.
} heaplog_error_t;

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_HEAPLOG_H_
