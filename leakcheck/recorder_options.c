// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/recorder_options.h"

#include <assert.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "leakcheck/process_info.h"

#define DEFAULT_LOG "leakcheck.%p.heaplog"
#define EXTENSION ".heaplog"
#define LOG_VARIABLE "LEAKCHECK_LOG"

// So a value that is cut is too long for a path all the same.
static_assert(PROCESS_INFO_VARIABLE_BYTES_MAX >=
                  sizeof(LOG_VARIABLE "=") + HEAPLOG_PATH_BYTES_MAX,
              "a variable with the longest path must fit");

const char recorder_options_help[] =
    "leakcheck records what a program does with its heap:\n"
    "  LD_PRELOAD=libleakcheck.so program ...\n"
    "Environment variables:\n"
    "  LEAKCHECK_LOG=FILE     where to write; %p is the process id, %% is %\n"
    "                         (default " DEFAULT_LOG
    "); a name that is taken is\n"
    "                         not overwritten: a number is added\n"
    "  LEAKCHECK_FRAMES=N     frames kept of a call stack, 1 to 256 (default "
    "64)\n"
    "  LEAKCHECK_FORK=log     a forked child gets a log of its own, NAME.fork"
    "\n"
    "                         .heaplog (default)\n"
    "  LEAKCHECK_FORK=stop    a forked child is not recorded; what it executes "
    "is\n"
    "  LEAKCHECK_HELP=1       print this and exit\n";

// A text under construction; once it did not fit, nothing more is added.
typedef struct text {
  char *bytes;
  size_t capacity;
  size_t len;
  bool cut;
} text_t;

static void add_char(text_t *text, char letter) {
  if (text->len + 1 >= text->capacity) {
    text->cut = true;
    return;
  }
  text->bytes[text->len++] = letter;
  text->bytes[text->len] = '\0';
}

static void add_text(text_t *text, const char *more) {
  for (; *more != '\0'; more++) {
    add_char(text, *more);
  }
}

static void add_number(text_t *text, uint64_t number) {
  char digits[20];
  size_t count = 0;
  do {
    digits[count++] = (char)('0' + number % 10);
    number /= 10;
  } while (number != 0);
  while (count != 0) {
    add_char(text, digits[--count]);
  }
}

static void set_log(recorder_options_t *options, const char *name) {
  text_t text = {options->log, sizeof(options->log), 0, false};
  options->log[0] = '\0';
  if (name[0] != '/') {
    char folder[HEAPLOG_PATH_BYTES_MAX];
    long len = syscall(SYS_getcwd, folder, sizeof(folder));  // With its NUL.
    for (long i = 0; i + 1 < len; i++) {
      if (folder[i] == '%') {
        add_char(&text, '%');  // Not a pattern.
      }
      add_char(&text, folder[i]);
    }
    add_char(&text, '/');
  }
  add_text(&text, name);
  if (text.cut) {
    options->log[0] = '\0';
  }
}

typedef struct reading {
  recorder_options_t *options;
  bool has_log;
  const char *error;
  char log[HEAPLOG_PATH_BYTES_MAX + 1];
} reading_t;

// Keeps one byte more than fits into the options, by which they see that a
// value is too long.
static void keep_log(reading_t *reading, const char *value) {
  size_t len = strnlen(value, sizeof(reading->log) - 1);
  memcpy(reading->log, value, len);
  reading->log[len] = '\0';
  reading->has_log = true;
}

static bool parse_frames(const char *text, uint32_t *out_frames) {
  uint32_t value = 0;
  if (*text == '\0') {
    return false;
  }
  for (; *text != '\0'; text++) {
    if (*text < '0' || *text > '9' || value > RECORDER_FRAMES_MAX) {
      return false;
    }
    value = value * 10 + (uint32_t)(*text - '0');
  }
  if (value == 0 || value > RECORDER_FRAMES_MAX) {
    return false;
  }
  *out_frames = value;
  return true;
}

// Returns the value when `entry` is `name`=value, else NULL.
static const char *value_of(const char *entry, const char *name) {
  size_t len = strlen(name);
  bool match = strncmp(entry, name, len) == 0 && entry[len] == '=';
  return match ? entry + len + 1 : NULL;
}

static void read_variable(void *context, const char *entry) {
  reading_t *reading = context;
  recorder_options_t *options = reading->options;
  const char *value;
  if ((value = value_of(entry, LOG_VARIABLE)) != NULL) {
    if (*value != '\0' && !reading->has_log) {
      keep_log(reading, value);
    }
  } else if ((value = value_of(entry, "LEAKCHECK_FRAMES")) != NULL) {
    if (!parse_frames(value, &options->max_frames)) {
      reading->error = "LEAKCHECK_FRAMES is not a number from 1 to 256";
    }
  } else if ((value = value_of(entry, "LEAKCHECK_FORK")) != NULL) {
    options->record_forks = strcmp(value, "stop") != 0;
    if (options->record_forks && strcmp(value, "log") != 0) {
      reading->error = "LEAKCHECK_FORK is neither log nor stop";
    }
  } else if ((value = value_of(entry, "LEAKCHECK_HELP")) != NULL) {
    options->help = *value != '\0' && strcmp(value, "0") != 0;
  }
}

const char *recorder_options_read(recorder_options_t *out_options) {
  out_options->max_frames = RECORDER_FRAMES_DEFAULT;
  out_options->record_forks = true;
  out_options->help = false;
  reading_t reading;
  reading.options = out_options;
  reading.has_log = false;
  reading.error = NULL;
  process_info_environment("LEAKCHECK_", read_variable, &reading);
  set_log(out_options, reading.has_log ? reading.log : DEFAULT_LOG);
  return reading.error;
}

bool recorder_options_per_process(const recorder_options_t *options) {
  const char *at = options->log;
  while ((at = strchr(at, '%')) != NULL) {
    if (at[1] == 'p') {
      return true;
    }
    at += at[1] == '%' ? 2 : 1;
  }
  return false;
}

// Adds [pattern, end) with %p and %% replaced.
static void add_pattern(text_t *text, const char *pattern, const char *end,
                        uint64_t pid) {
  for (; pattern < end; pattern++) {
    if (pattern[0] == '%' && pattern[1] == 'p') {
      add_number(text, pid);
      pattern++;
    } else {
      add_char(text, *pattern);
      pattern += pattern[0] == '%' && pattern[1] == '%';
    }
  }
}

bool recorder_options_log_name(const recorder_options_t *options, uint64_t pid,
                               bool forked, unsigned attempt, char *out_path,
                               size_t capacity) {
  text_t text = {out_path, capacity, 0, options->log[0] == '\0'};
  out_path[0] = '\0';
  const char *end = options->log + strlen(options->log);
  const char *extension = end;
  size_t extension_len = strlen(EXTENSION);
  if ((size_t)(end - options->log) > extension_len &&
      strcmp(end - extension_len, EXTENSION) == 0) {
    extension = end - extension_len;
  }
  add_pattern(&text, options->log, extension, pid);
  if (!recorder_options_per_process(options) && (forked || attempt > 1)) {
    // The pid alone makes the second name.
    attempt -= !forked;
    add_char(&text, '.');
    add_number(&text, pid);
  }
  if (forked) {
    add_text(&text, ".fork");
  }
  if (attempt > 1) {
    add_char(&text, '.');
    add_number(&text, attempt);
  }
  add_text(&text, extension);
  return !text.cut;
}
