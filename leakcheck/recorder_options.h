// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// recorder_options: the recorder's environment variables, and the names of its
// logs. Allocates nothing.

#ifndef MY_ALLOC_LEAKCHECK_RECORDER_OPTIONS_H_
#define MY_ALLOC_LEAKCHECK_RECORDER_OPTIONS_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "leakcheck/heaplog.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RECORDER_FRAMES_DEFAULT 64
#define RECORDER_FRAMES_MAX 256

typedef struct recorder_options {
  // LEAKCHECK_LOG: made absolute, %p not yet replaced. Empty: too long.
  char log[HEAPLOG_PATH_BYTES_MAX];
  uint32_t max_frames;  // LEAKCHECK_FRAMES
  bool record_forks;    // LEAKCHECK_FORK
  bool help;            // LEAKCHECK_HELP
} recorder_options_t;

// What LEAKCHECK_HELP prints.
extern const char recorder_options_help[];

// Fills in what the environment says, and the defaults. Returns NULL, or a text
// saying which variable has a value that is not understood.
const char *recorder_options_read(recorder_options_t *out_options);

// True when LEAKCHECK_LOG has a %p, so that each process has a name of its own.
bool recorder_options_per_process(const recorder_options_t *options);

// Stores the name of a log. For `attempt` 1 that is LEAKCHECK_LOG with %p
// replaced by `pid` and %% by %; greater attempts give other names, for when
// that one is taken:
//   run.7.heaplog  run.7.2.heaplog ...    LEAKCHECK_LOG=run.%p.heaplog
//   run.heaplog    run.7.heaplog   ...    LEAKCHECK_LOG=run.heaplog
// The log of a forked child has `.fork` in its name, and always the pid:
//   run.7.fork.heaplog  run.7.fork.2.heaplog ...
// False when the name does not fit.
bool recorder_options_log_name(const recorder_options_t *options, uint64_t pid,
                               bool forked, unsigned attempt, char *out_path,
                               size_t capacity);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_RECORDER_OPTIONS_H_
