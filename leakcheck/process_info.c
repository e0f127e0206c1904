// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/process_info.h"

#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_SECOND UINT64_C(1000000000)

// syscall() and not open(), read() and close(): those are cancellation points,
// and programs and other preloaded objects replace them.
static int open_for_reading(const char *path) {
  return (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
}

static ptrdiff_t read_some(int fd, void *out_bytes, size_t capacity) {
  return (ptrdiff_t)syscall(SYS_read, fd, out_bytes, capacity);
}

static void close_file(int fd) {
  (void)syscall(SYS_close, fd);
}

ptrdiff_t process_info_read(const char *path, void *out_bytes,
                            size_t capacity) {
  int fd = open_for_reading(path);
  if (fd < 0) {
    return -1;
  }
  unsigned char *bytes = out_bytes;
  size_t num_bytes = 0;
  ptrdiff_t result = 1;
  while (num_bytes < capacity && result > 0) {
    result = read_some(fd, bytes + num_bytes, capacity - num_bytes);
    num_bytes += result > 0 ? (size_t)result : 0;
  }
  close_file(fd);
  return result < 0 ? -1 : (ptrdiff_t)num_bytes;
}

void process_info_executable(char *out_path, size_t capacity) {
  long result = syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", out_path,
                        capacity - 1);
  out_path[result > 0 ? result : 0] = '\0';
}

// Calls `visit` for each piece of the file that ends with `separator`, which is
// replaced by a NUL, until it returns false. Pieces that do not fit into
// `buffer` are left out, or with `cut` given up to there.
static void for_each_line(const char *path, char separator, bool cut,
                          char *buffer, size_t capacity,
                          bool (*visit)(void *context, char *line),
                          void *context) {
  size_t fill = 0;
  bool skipping = false;
  int fd = open_for_reading(path);
  if (fd < 0) {
    return;
  }
  for (;;) {
    ptrdiff_t result = read_some(fd, buffer + fill, capacity - fill);
    if (result <= 0) {
      break;
    }
    fill += (size_t)result;
    char *line = buffer;
    char *end;
    while ((end = memchr(line, separator, fill)) != NULL) {
      *end = '\0';
      if (!skipping && !visit(context, line)) {
        goto done;
      }
      skipping = false;
      fill -= (size_t)(end + 1 - line);
      line = end + 1;
    }
    if (fill == capacity) {
      buffer[capacity - 1] = '\0';
      if (cut && !skipping && !visit(context, buffer)) {
        goto done;
      }
      skipping = true;
      fill = 0;
    }
    memmove(buffer, line, fill);
  }
done:
  close_file(fd);
}

typedef struct mapped_file {
  uintptr_t address;
  char *out_path;
  bool found;
} mapped_file_t;

static const char *parse_hex(const char *text, uintptr_t *out_value) {
  uintptr_t value = 0;
  for (;; text++) {
    if (*text >= '0' && *text <= '9') {
      value = value * 16 + (uintptr_t)(*text - '0');
    } else if (*text >= 'a' && *text <= 'f') {
      value = value * 16 + (uintptr_t)(*text - 'a') + 10;
    } else {
      *out_value = value;
      return text;
    }
  }
}

// start-end permissions offset device inode      path
static bool match_mapping(void *context, char *line) {
  mapped_file_t *wanted = context;
  uintptr_t start;
  uintptr_t end;
  const char *text = parse_hex(line, &start);
  if (*text != '-') {
    return true;
  }
  text = parse_hex(text + 1, &end);
  if (wanted->address < start || wanted->address >= end) {
    return true;
  }
  for (int field = 0; field < 4; field++) {
    text += strspn(text, " ");
    text += strcspn(text, " ");
  }
  text += strspn(text, " ");
  // The line is in `out_path` itself.
  memmove(wanted->out_path, text, strlen(text) + 1);
  wanted->found = wanted->out_path[0] != '\0';
  return false;
}

bool process_info_mapped_file(uintptr_t address, char *out_path,
                              size_t capacity) {
  mapped_file_t wanted = {address, out_path, false};
  for_each_line("/proc/self/maps", '\n', false, out_path, capacity,
                match_mapping, &wanted);
  return wanted.found;
}

typedef struct environment_search {
  const char *prefix;
  void (*visit)(void *context, const char *entry);
  void *context;
  bool any;
} environment_search_t;

static bool match_variable(void *context, char *line) {
  environment_search_t *search = context;
  search->any = true;
  if (strncmp(line, search->prefix, strlen(search->prefix)) == 0) {
    search->visit(search->context, line);
  }
  return true;
}

void process_info_environment(const char *prefix,
                              void (*visit)(void *context, const char *entry),
                              void *context) {
  environment_search_t search = {prefix, visit, context, false};
  // The kernel's copy, since malloc runs before libc sets `environ`.
  char buffer[PROCESS_INFO_VARIABLE_BYTES_MAX + 1];
  for_each_line("/proc/self/environ", '\0', true, buffer, sizeof(buffer),
                match_variable, &search);
  if (search.any || environ == NULL) {
    return;
  }
  for (char **entry = environ; *entry != NULL; entry++) {
    (void)match_variable(&search, *entry);
  }
}

static uint64_t parse_decimal(const char *text) {
  uint64_t value = 0;
  for (; *text >= '0' && *text <= '9'; text++) {
    value = value * 10 + (uint64_t)(*text - '0');
  }
  return value;
}

static const char *skip_fields(const char *text, int count) {
  for (int i = 0; i < count; i++) {
    text += strcspn(text, " ");
    text += strspn(text, " ");
  }
  return text;
}

uint64_t process_info_resident_bytes(void) {
  char text[128];
  ptrdiff_t len = process_info_read("/proc/self/statm", text, sizeof(text) - 1);
  if (len <= 0) {
    return 0;
  }
  text[len] = '\0';
  return parse_decimal(skip_fields(text, 1)) * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t clock_ns(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return (uint64_t)time.tv_sec * NS_PER_SECOND + (uint64_t)time.tv_nsec;
}

uint64_t process_info_start_unix_ns(void) {
  char text[1024];
  ptrdiff_t len = process_info_read("/proc/self/stat", text, sizeof(text) - 1);
  if (len <= 0) {
    return 0;
  }
  text[len] = '\0';
  // Field 2 is the program's name in parentheses and may hold anything; the
  // start, in ticks since boot, is field 22.
  const char *name_end = strrchr(text, ')');
  if (name_end == NULL) {
    return 0;
  }
  uint64_t ticks = parse_decimal(skip_fields(name_end, 20));
  uint64_t since_boot =
      ticks * (NS_PER_SECOND / (uint64_t)sysconf(_SC_CLK_TCK));
  return clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_BOOTTIME) + since_boot;
}
