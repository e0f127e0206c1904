// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What a cache says before it ends the process. One line is built in a buffer
// on the stack and written by one write(2), so that lines of several threads do
// not mix. Nothing here allocates or uses stdio.

#include "slab/slab_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
  LINE_CAPACITY = 512,
};

typedef struct line {
  char bytes[LINE_CAPACITY];
  size_t length;
} line_t;

static void add(line_t *line, const char *text) {
  for (; *text != '\0' && line->length < LINE_CAPACITY - 1; ++text) {
    line->bytes[line->length++] = *text;
  }
}

static void add_number(line_t *line, uint64_t value, unsigned base) {
  char digits[24];
  size_t at = sizeof(digits) - 1;
  digits[at] = '\0';
  do {
    digits[--at] = "0123456789abcdef"[value % base];
    value /= base;
  } while (value != 0);
  add(line, digits + at);
}

static void add_address(line_t *line, const void *ptr) {
  add(line, "0x");
  add_number(line, (uintptr_t)ptr, 16);
}

static void write_line(line_t *line) {
  line->bytes[line->length++] = '\n';
  const char *at = line->bytes;
  while (line->length > 0) {
    // write() is a cancellation point, and an error would not end the process.
    long written = syscall(SYS_write, STDERR_FILENO, at, line->length);
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return;  // There is no second place to say it.
    }
    at += written;
    line->length -= (size_t)written;
  }
}

SLAB_NORETURN void slab_die(const char *message) {
  line_t line = {.length = 0};
  add(&line, message);
  if (line.length != 0 && line.bytes[line.length - 1] == '\n') {
    --line.length;
  }
  write_line(&line);
  abort();
}

static const char *text_of(slab_misuse_t misuse) {
  switch (misuse) {
    case SLAB_MISUSE_FREED:
      return "double free";
    case SLAB_MISUSE_UNUSED:
      return "invalid pointer (an object never allocated)";
    case SLAB_MISUSE_INTERIOR:
      return "invalid pointer (not the start of its object)";
    case SLAB_MISUSE_FOREIGN:
      return "invalid pointer (no object of any cache)";
    case SLAB_MISUSE_OTHER:
      return "wrong cache";
    case SLAB_MISUSE_TWICE:
      return "double free (by two threads at once)";
    case SLAB_MISUSE_MISCOUNTED:
      return "double free (by two threads at once) in the slab at";
    case SLAB_MISUSE_RED_ZONE:
      return "written outside of the object";
    case SLAB_MISUSE_WRITTEN:
      return "written after free";
  }
  return "?";
}

static void add_cache(line_t *line, const slab_cache_t *cache) {
  add(line, "\"");
  add(line, cache->name);
  add(line, "\"");
}

static void add_site(line_t *line, const char *text, const void *site) {
  if (site != NULL) {
    add(line, text);
    add_address(line, site);
  }
}

SLAB_NORETURN void slab_report_misuse(const slab_report_t *report) {
  line_t line = {.length = 0};
  add(&line, "slab: ");
  add(&line, report->function);
  add(&line, ": ");
  add(&line, text_of(report->misuse));
  add(&line, ": ");
  add_address(&line, report->ptr);
  if (report->object != NULL) {
    add(&line, ", object ");
    add_address(&line, report->object);
    add(&line, " of ");
    add_number(&line,
               report->other != NULL ? report->other->object_bytes
                                     : report->cache->object_bytes,
               10);
    add(&line, " bytes");
  }
  add(&line, ", cache ");
  add_cache(&line, report->cache);
  if (report->other != NULL) {
    add(&line, ", not its own cache ");
    add_cache(&line, report->other);
  }
  add(&line, ", thread ");
  add_number(&line, (uint64_t)syscall(SYS_gettid), 10);
  add_site(&line, ", called from ", report->caller);
  if (report->record != NULL) {
    add_site(&line, ", allocated from ", report->record->alloc_caller);
    add_site(&line, ", last freed from ", report->record->free_caller);
  }
  write_line(&line);
  abort();
}

void slab_die_twice(const slab_cache_t *cache, const void *object,
                    const char *function) {
  slab_report_misuse(&(slab_report_t){.misuse = SLAB_MISUSE_TWICE,
                                      .function = function,
                                      .cache = cache,
                                      .ptr = object,
                                      .object = object});
}

void slab_report_leaks(slab_cache_t *cache, size_t count, void *const *first,
                       size_t num_first) {
  line_t line = {.length = 0};
  add(&line, "slab: slab_cache_destroy: ");
  add_number(&line, count, 10);
  add(&line, count == 1 ? " live object of " : " live objects of ");
  add_number(&line, cache->object_bytes, 10);
  add(&line, " bytes in cache ");
  add_cache(&line, cache);
  for (size_t i = 0; i < num_first; ++i) {
    add(&line, i == 0 ? ": " : ", ");
    add_address(&line, first[i]);
    if ((cache->flags & SLAB_DEBUG) != 0) {
      const slab_t *slab = slab_find(cache, (uintptr_t)first[i]);
      size_t index = slab_index_of(cache, slab, (uintptr_t)first[i]);
      add_site(&line, " allocated from ",
               slab_records(cache, slab)[index].alloc_caller);
    }
  }
  add(&line, num_first < count ? ", ..." : "");
  write_line(&line);
}

// Returns the slab of `cache` that has an object at or around `ptr`. The lock
// is taken if it is free: a thread that is reported may hold it, inside of
// slab_walk.
static slab_t *find_slab(slab_cache_t *cache, const void *ptr) {
  bool is_locked = pthread_mutex_trylock(&cache->lock) == 0;
  slab_t *slab = slab_find(cache, (uintptr_t)ptr);
  if (slab != NULL && (slab->list >= SLAB_LIST_COUNT ||
                       (uintptr_t)ptr - (uintptr_t)slab->base >=
                           slab_span_bytes(cache, slab))) {
    slab = NULL;
  }
  if (is_locked) {
    pthread_mutex_unlock(&cache->lock);
  }
  return slab;
}

// Finds the other cache that `ptr` belongs to.
static bool find_other(slab_cache_t *cache, const void *ptr,
                       slab_report_t *report) {
  bool found = false;
  slab_process_lock();
  for (slab_cache_t *other = slab_first_cache(); other != NULL && !found;
       other = other->next) {
    slab_t *slab = other == cache ? NULL : find_slab(other, ptr);
    if (slab != NULL) {
      size_t index = slab_index_of(other, slab, (uintptr_t)ptr);
      report->misuse = SLAB_MISUSE_OTHER;
      report->other = other;
      report->object = slab_object_at(other, slab, index);
      found = true;
    }
  }
  // The lock stays taken: what is reported must last until it is.
  if (!found) {
    slab_process_unlock();
  }
  return found;
}

SLAB_NORETURN void slab_report_free(slab_cache_t *cache, void *ptr,
                                    const char *function, const void *caller) {
  slab_report_t report = {
      .misuse = SLAB_MISUSE_FOREIGN,
      .function = function,
      .cache = cache,
      .ptr = ptr,
      .caller = caller,
  };
  slab_t *slab = find_slab(cache, ptr);
  if (slab == NULL) {
    find_other(cache, ptr, &report);
    slab_report_misuse(&report);
  }
  size_t index = slab_index_of(cache, slab, (uintptr_t)ptr);
  report.object = slab_object_at(cache, slab, index);
  if ((cache->flags & SLAB_DEBUG) != 0) {
    report.record = &slab_records(cache, slab)[index];
  }
  if (report.object != ptr) {
    report.misuse = SLAB_MISUSE_INTERIOR;
  } else if (slab_state_load(&slab->states[index]) == SLAB_STATE_UNUSED ||
             slab_state_load(&slab->states[index]) == SLAB_STATE_RAW) {
    report.misuse = SLAB_MISUSE_UNUSED;
  } else {
    report.misuse = SLAB_MISUSE_FREED;
  }
  slab_report_misuse(&report);
}
