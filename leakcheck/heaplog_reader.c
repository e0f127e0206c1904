// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The public face: opening, starting over, and looking things up. What was
// read comes from heaplog_merge.c, what was defined from heaplog_definitions.c.

#include "leakcheck/heaplog_reader.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "leakcheck/heaplog_reader_internal.h"

static const heaplog_failure_t kNoMemory = {.code = HEAPLOG_ERROR_NO_MEMORY,
                                            .status = -ENOMEM,
                                            .text = "out of memory"};

size_t heaplog_reader_read(heaplog_reader_t *reader,
                           heaplog_event_t *out_events, size_t capacity) {
  return heaplog_merge_read(reader, out_events, capacity);
}

bool heaplog_reader_next(heaplog_reader_t *reader, heaplog_event_t *out_event) {
  return heaplog_reader_read(reader, out_event, 1) == 1;
}

// Fills in *out_error, if wanted. Returns the status.
static int explain(heaplog_failure_t failure, heaplog_error_t *out_error) {
  if (out_error != NULL) {
    *out_error = (heaplog_error_t){.code = failure.code,
                                   .status = failure.status,
                                   .byte_offset = failure.byte_offset};
    if (failure.code == HEAPLOG_ERROR_SYSTEM) {
      snprintf(out_error->text, sizeof(out_error->text), "%s: %s", failure.text,
               strerrordesc_np(-failure.status));
    } else if (failure.code != HEAPLOG_OK) {
      snprintf(out_error->text, sizeof(out_error->text), "%s", failure.text);
    }
  }
  return failure.status;
}

// Sets the state of a reader whose file was just opened, all else being zero.
static void start(heaplog_reader_t *reader) {
  const heaplog_file_header_t *header = &reader->file.header;
  reader->info = (heaplog_info_t){
      .version_major = header->version_major,
      .version_minor = header->version_minor,
      .pid = header->pid,
      .page_bytes = header->page_bytes,
      .start_monotonic_ns = header->start_monotonic_ns,
      .start_unix_ns = header->start_unix_ns,
      .file_bytes = reader->file.size_bytes,
      .lost_count = (uint32_t)header->lost_count,
      .executable = "",
      .command_line = "",
  };
}

int heaplog_reader_open(const char *path, heaplog_reader_t **out_reader,
                        heaplog_error_t *out_error) {
  heaplog_reader_t *reader = calloc(1, sizeof(*reader));
  if (reader == NULL) {
    return explain(kNoMemory, out_error);
  }
  heaplog_failure_t found = heaplog_file_open(&reader->file, path);
  if (found.code != HEAPLOG_OK) {
    goto fail_file;
  }
  reader->chunk_bytes = malloc(HEAPLOG_CHUNK_BYTES);
  if (reader->chunk_bytes == NULL) {
    found = kNoMemory;
    goto fail_memory;
  }
  start(reader);
  *out_reader = reader;
  return explain(found, out_error);

fail_memory:
  heaplog_file_close(&reader->file);
fail_file:
  free(reader);
  return explain(found, out_error);
}

void heaplog_reader_close(heaplog_reader_t *reader) {
  if (reader == NULL) {
    return;
  }
  heaplog_merge_clear(reader);
  free(reader->chunk_bytes);
  heaplog_file_close(&reader->file);
  free(reader);
}

int heaplog_reader_status(const heaplog_reader_t *reader,
                          heaplog_error_t *out_error) {
  return explain(reader->final, out_error);
}

int heaplog_reader_rewind(heaplog_reader_t *reader) {
  heaplog_merge_clear(reader);
  heaplog_failure_t found = heaplog_file_read_header(&reader->file);
  start(reader);
  if (found.code != HEAPLOG_OK) {
    reader->final = found;
    reader->ended = true;
  }
  return found.status;
}

const heaplog_info_t *heaplog_reader_info(const heaplog_reader_t *reader) {
  return &reader->info;
}

size_t heaplog_reader_stack(const heaplog_reader_t *reader, uint32_t stack_id,
                            uint64_t *out_instruction_pointers,
                            size_t capacity) {
  size_t count = 0;
  while (count < capacity && stack_id != 0) {
    const heaplog_stack_node_t *node =
        heaplog_definitions_stack(&reader->definitions, stack_id);
    if (node == NULL) {
      break;
    }
    out_instruction_pointers[count++] = node->instruction_pointer;
    stack_id = node->parent_id;
  }
  return count;
}

bool heaplog_reader_stack_node(const heaplog_reader_t *reader,
                               uint32_t stack_id,
                               uint64_t *out_instruction_pointer,
                               uint32_t *out_parent_id) {
  const heaplog_stack_node_t *node =
      heaplog_definitions_stack(&reader->definitions, stack_id);
  if (node == NULL) {
    return false;
  }
  *out_instruction_pointer = node->instruction_pointer;
  *out_parent_id = node->parent_id;
  return true;
}

uint32_t heaplog_reader_stack_id_end(const heaplog_reader_t *reader) {
  return reader->definitions.stack_id_end;
}

size_t heaplog_reader_module_count(const heaplog_reader_t *reader) {
  return reader->definitions.module_count;
}

bool heaplog_reader_module(const heaplog_reader_t *reader, size_t index,
                           heaplog_module_t *out_module) {
  if (index >= reader->definitions.module_count) {
    return false;
  }
  *out_module = reader->definitions.modules[index];
  return true;
}

size_t heaplog_reader_thread_count(const heaplog_reader_t *reader) {
  return reader->definitions.thread_count;
}

bool heaplog_reader_thread(const heaplog_reader_t *reader, size_t index,
                           heaplog_thread_t *out_thread) {
  if (index >= reader->definitions.thread_count) {
    return false;
  }
  *out_thread = reader->definitions.threads[index];
  return true;
}
