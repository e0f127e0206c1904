// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Appending records.
//
//   chunk                  used                                      capacity
//   +--------+-------------+-----------------+------------------------+-----+
//   | header | committed   | record being    | zeros or the remains   |spare|
//   | commit |  records    |  written        |  of records cut short  |     |
//   +--------+-------------+-----------------+------------------------+-----+
//
// A record's bytes are stored behind the committed ones, the checksum goes on
// over them, and one aligned 64-bit store of (length, checksum) makes them part
// of the log. Killed before that store, the log is as it was; after it, the
// record is there. The mapping is the page cache itself, so no system call is
// needed for the bytes to outlive the process.
//
// Invariants, between appends:
//   1. The commit word covers exactly `used` payload bytes, and `crc_state` is
//      their checksum's; or `used` is 0 and the word too.
//   2. A chunk's first record is the THREAD of its thread.
//   3. `limit` is 0 (the next append goes to make_room()) or FILL_BYTES_MAX;
//   what
//      is left above that has room for the end of the thread.
//
// A signal handler that interrupts an append and appends to the same stream
// would tear both records. `busy` turns it away; its event counts as lost.

#include <string.h>

#include "leakcheck/crc32c.h"
#include "leakcheck/heaplog_writer_internal.h"

// THREAD and LOST, which make_room() may put before a record.
#define PREAMBLE_BYTES_MAX 128u
// Body of a framed record that has only numbers.
#define NUMBERS_BYTES_MAX 64u
// LOST and THREAD_END.
#define EPILOGUE_BYTES_MAX 64u
#define FILL_BYTES_MAX (HEAPLOG_PAYLOAD_BYTES_MAX - EPILOGUE_BYTES_MAX)

static_assert(HEAPLOG_BODY_BYTES_MAX + PREAMBLE_BYTES_MAX <= FILL_BYTES_MAX,
              "any record fits in a fresh chunk");
static_assert(HEAPLOG_COMMAND_LINE_BYTES_MAX + HEAPLOG_PATH_BYTES_MAX +
                      NUMBERS_BYTES_MAX <=
                  HEAPLOG_BODY_BYTES_MAX,
              "the longest record");

static inline void count_lost(heaplog_stream_t *stream, uint64_t count) {
  // Relaxed: between a thread and its own signal handlers.
  atomic_fetch_add_explicit(&stream->lost_unreported, count,
                            memory_order_relaxed);
  atomic_store_explicit(&stream->limit, 0, memory_order_relaxed);
  if (stream->writer != NULL) {
    heaplog_writer_add_lost(stream->writer, count);
  }
}

// Begins an append. Returns false in a signal handler that interrupted one.
static inline bool enter(heaplog_stream_t *stream) {
  if (__builtin_expect(
          atomic_load_explicit(&stream->busy, memory_order_relaxed), 0)) {
    count_lost(stream, 1);
    return false;
  }
  atomic_store_explicit(&stream->busy, true, memory_order_relaxed);
  // For the compiler: the record is written between enter() and leave().
  atomic_signal_fence(memory_order_seq_cst);
  return true;
}

static inline void leave(heaplog_stream_t *stream) {
  atomic_signal_fence(memory_order_seq_cst);
  atomic_store_explicit(&stream->busy, false, memory_order_relaxed);
}

static inline unsigned char *payload_end(const heaplog_stream_t *stream) {
  return stream->chunk + sizeof(heaplog_chunk_header_t) + stream->used;
}

// Commits the record from payload_end() to `end`.
static inline void commit(heaplog_stream_t *stream, const unsigned char *end) {
  const unsigned char *start = payload_end(stream);
  size_t record_bytes = (size_t)(end - start);
  stream->crc_state = heaplog_crc32c_extend(
      stream->hardware_crc, stream->crc_state, start, record_bytes);
  stream->used += (uint32_t)record_bytes;
  assert(stream->used <= HEAPLOG_PAYLOAD_BYTES_MAX);
  heaplog_chunk_header_t *header = (heaplog_chunk_header_t *)stream->chunk;
  // Release: the bytes before the word that vouches for them. Pairs with
  // readers of the file, in this or another process.
  atomic_store_explicit(
      (_Atomic uint64_t *)&header->commit,
      heaplog_commit_word(stream->used,
                          heaplog_crc32c_value(stream->crc_state)),
      memory_order_release);
}

// Varints mostly have one or two bytes; straight code for those.
static inline unsigned char *put(unsigned char *bytes, uint64_t value) {
  if (value < 0x80) {
    bytes[0] = (unsigned char)value;
    return bytes + 1;
  }
  if (value < 0x4000) {
    bytes[0] = (unsigned char)(value | 0x80);
    bytes[1] = (unsigned char)(value >> 7);
    return bytes + 2;
  }
  return heaplog_varint_put(bytes, value);
}

static inline unsigned char *put_time(heaplog_stream_t *stream,
                                      unsigned char *bytes, uint64_t time_ns) {
  uint64_t delta_ns = 0;
  if (time_ns > stream->last_time_ns) {
    delta_ns = time_ns - stream->last_time_ns;
    stream->last_time_ns = time_ns;
  }
  return put(bytes, delta_ns);
}

static inline unsigned char *put_string(unsigned char *bytes, const void *data,
                                        size_t size_bytes) {
  bytes = heaplog_varint_put(bytes, size_bytes);
  memcpy(bytes, data, size_bytes);
  return bytes + size_bytes;
}

// Where the body of a framed record goes: behind the type and a length of one
// byte, which is what all but long strings need.
static inline unsigned char *frame_body(const heaplog_stream_t *stream) {
  return payload_end(stream) + 2;
}

// Puts type and length before the body and commits.
static void frame_commit(heaplog_stream_t *stream, unsigned char type,
                         unsigned char *body_end) {
  unsigned char *record = payload_end(stream);
  unsigned char *body = record + 2;
  size_t body_bytes = (size_t)(body_end - body);
  assert(body_bytes <= HEAPLOG_BODY_BYTES_MAX);
  if (body_bytes >= 0x80) {
    size_t length_bytes = body_bytes < 0x4000 ? 2 : 3;
    memmove(record + 1 + length_bytes, body, body_bytes);
    body_end += length_bytes - 1;
  }
  record[0] = type;
  heaplog_varint_put(record + 1, body_bytes);
  commit(stream, body_end);
}

static void append_thread(heaplog_stream_t *stream) {
  uint64_t start_ns = stream->writer->start_monotonic_ns;
  unsigned char *body = frame_body(stream);
  body = heaplog_varint_put(body, stream->thread_index);
  body = heaplog_varint_put(body, stream->tid);
  body = heaplog_varint_put(body, stream->thread_start_ns > start_ns
                                      ? stream->thread_start_ns - start_ns
                                      : 0);
  body = put_string(body, stream->thread_name,
                    strnlen(stream->thread_name, sizeof(stream->thread_name)));
  frame_commit(stream, HEAPLOG_RECORD_THREAD, body);
  stream->announced = true;
}

static void append_unreported(heaplog_stream_t *stream, uint64_t time_ns,
                              uint64_t count) {
  unsigned char *body = put_time(stream, frame_body(stream), time_ns);
  body = heaplog_varint_put(body, count);
  frame_commit(stream, HEAPLOG_RECORD_LOST, body);
}

// Makes room for a record of up to `record_bytes`, after what has to come
// before it. Returns false when there is none.
static bool make_room(heaplog_stream_t *stream, uint64_t time_ns,
                      uint32_t record_bytes) {
  // NULL in a forked child, whose streams are wiped.
  if (stream->writer == NULL) {
    return false;
  }
  if (stream->chunk == NULL ||
      stream->used + PREAMBLE_BYTES_MAX + record_bytes > FILL_BYTES_MAX) {
    if (heaplog_chunk_take(stream, time_ns) != 0) {
      return false;
    }
  }
  if (!stream->announced) {
    append_thread(stream);
  }
  atomic_store_explicit(&stream->limit, FILL_BYTES_MAX, memory_order_relaxed);
  uint64_t lost = atomic_exchange_explicit(&stream->lost_unreported, 0,
                                           memory_order_relaxed);
  if (lost != 0) {
    append_unreported(stream, time_ns, lost);
  }
  return true;
}

// Begins an event of up to `record_bytes`. After true, commit and leave.
static inline bool begin_event(heaplog_stream_t *stream, uint64_t time_ns,
                               uint32_t record_bytes) {
  if (!enter(stream)) {
    return false;
  }
  uint32_t limit = atomic_load_explicit(&stream->limit, memory_order_relaxed);
  if (__builtin_expect(stream->used + record_bytes > limit, 0) &&
      !make_room(stream, time_ns, record_bytes)) {
    count_lost(stream, 1);
    leave(stream);
    return false;
  }
  return true;
}

// The same for a definition, which does not count as a lost event.
static bool begin_definition(heaplog_stream_t *stream, uint32_t record_bytes) {
  if (stream->writer == NULL ||
      atomic_load_explicit(&stream->busy, memory_order_relaxed) ||
      !enter(stream)) {
    return false;
  }
  uint32_t limit = atomic_load_explicit(&stream->limit, memory_order_relaxed);
  if (stream->used + record_bytes > limit &&
      !make_room(stream, stream->last_time_ns, record_bytes)) {
    leave(stream);
    return false;
  }
  return true;
}

static bool reject(heaplog_stream_t *stream) {
  count_lost(stream, 1);
  return false;
}

// Fills in the tag and the fields that all compact events have.
static inline unsigned char *put_compact(heaplog_stream_t *stream,
                                         unsigned int tag, uint64_t time_ns,
                                         uint64_t address) {
  unsigned char *record = payload_end(stream);
  unsigned char *bytes = put_time(stream, record + 1, time_ns);
  uint64_t delta = address - stream->last_address;
  stream->last_address = address;
  if (delta % HEAPLOG_ADDRESS_UNIT_BYTES == 0) {
    tag |= HEAPLOG_COMPACT_UNITS;
    // Of a signed number, so the sign is kept.
    delta = (uint64_t)((int64_t)delta / (int64_t)HEAPLOG_ADDRESS_UNIT_BYTES);
  }
  record[0] = (unsigned char)(HEAPLOG_COMPACT | tag);
  return put(bytes, heaplog_zigzag(delta));
}

static inline unsigned char *put_stack(heaplog_stream_t *stream,
                                       unsigned char *bytes,
                                       uint32_t stack_id) {
  uint64_t delta = (uint64_t)stack_id - stream->last_stack_id;
  stream->last_stack_id = stack_id;
  return put(bytes, heaplog_zigzag(delta));
}

// ALLOC and RESIZE.
static inline bool append_sized(heaplog_stream_t *stream, unsigned int kind,
                                uint64_t time_ns, uint64_t address,
                                uint64_t size_bytes, uint64_t usable_bytes,
                                uint32_t stack_id) {
  uint64_t end_address;
  if (__builtin_expect(
          usable_bytes < size_bytes || stack_id > HEAPLOG_STACK_ID_MAX ||
              __builtin_add_overflow(address, usable_bytes, &end_address),
          0)) {
    return reject(stream);
  }
  if (!begin_event(stream, time_ns, HEAPLOG_COMPACT_BYTES_MAX)) {
    return false;
  }
  uint64_t slack_bytes = usable_bytes - size_bytes;
  unsigned int tag = kind << HEAPLOG_COMPACT_KIND_SHIFT;
  bool has_size = size_bytes != stream->last_size_bytes ||
                  slack_bytes != stream->last_slack_bytes;
  if (has_size) {
    tag |=
        HEAPLOG_COMPACT_SIZE | (slack_bytes != 0 ? HEAPLOG_COMPACT_SLACK : 0);
  }
  if (stack_id != stream->last_stack_id) {
    tag |= HEAPLOG_COMPACT_STACK;
  }
  unsigned char *bytes = put_compact(stream, tag, time_ns, address);
  if ((tag & HEAPLOG_COMPACT_STACK) != 0) {
    bytes = put_stack(stream, bytes, stack_id);
  }
  if (has_size) {
    bytes = put(bytes, size_bytes);
    if (slack_bytes != 0) {
      bytes = put(bytes, slack_bytes);
    }
    stream->last_size_bytes = size_bytes;
    stream->last_slack_bytes = slack_bytes;
  }
  commit(stream, bytes);
  leave(stream);
  return true;
}

bool heaplog_append_alloc(heaplog_stream_t *stream, uint64_t time_ns,
                          uint64_t address, uint64_t size_bytes,
                          uint64_t usable_bytes, uint32_t stack_id) {
  return append_sized(stream, HEAPLOG_COMPACT_ALLOC, time_ns, address,
                      size_bytes, usable_bytes, stack_id);
}

bool heaplog_append_resize(heaplog_stream_t *stream, uint64_t time_ns,
                           uint64_t address, uint64_t size_bytes,
                           uint64_t usable_bytes, uint32_t stack_id) {
  return append_sized(stream, HEAPLOG_COMPACT_RESIZE, time_ns, address,
                      size_bytes, usable_bytes, stack_id);
}

bool heaplog_append_free(heaplog_stream_t *stream, uint64_t time_ns,
                         uint64_t address, uint32_t stack_id) {
  if (__builtin_expect(stack_id > HEAPLOG_STACK_ID_MAX, 0)) {
    return reject(stream);
  }
  if (!begin_event(stream, time_ns, HEAPLOG_COMPACT_BYTES_MAX)) {
    return false;
  }
  unsigned int tag = HEAPLOG_COMPACT_FREE << HEAPLOG_COMPACT_KIND_SHIFT;
  if (stack_id != 0) {
    tag |= HEAPLOG_COMPACT_STACK;
  }
  unsigned char *bytes = put_compact(stream, tag, time_ns, address);
  if (stack_id != 0) {
    bytes = put_stack(stream, bytes, stack_id);
  }
  commit(stream, bytes);
  leave(stream);
  return true;
}

// A framed event: time and up to two numbers.
static bool append_numbers(heaplog_stream_t *stream, unsigned char type,
                           uint64_t time_ns, const uint64_t *numbers,
                           size_t num_numbers) {
  if (!begin_event(stream, time_ns, NUMBERS_BYTES_MAX)) {
    return false;
  }
  unsigned char *body = put_time(stream, frame_body(stream), time_ns);
  for (size_t i = 0; i < num_numbers; i++) {
    body = heaplog_varint_put(body, numbers[i]);
  }
  frame_commit(stream, type, body);
  leave(stream);
  return true;
}

static bool append_range(heaplog_stream_t *stream, unsigned char type,
                         uint64_t time_ns, uint64_t address,
                         uint64_t size_bytes) {
  uint64_t range[2] = {address, size_bytes};
  uint64_t end_address;
  if (__builtin_add_overflow(address, size_bytes, &end_address)) {
    return reject(stream);
  }
  return append_numbers(stream, type, time_ns, range, 2);
}

bool heaplog_append_map(heaplog_stream_t *stream, uint64_t time_ns,
                        uint64_t address, uint64_t size_bytes) {
  return append_range(stream, HEAPLOG_RECORD_MAP, time_ns, address, size_bytes);
}

bool heaplog_append_unmap(heaplog_stream_t *stream, uint64_t time_ns,
                          uint64_t address, uint64_t size_bytes) {
  return append_range(stream, HEAPLOG_RECORD_UNMAP, time_ns, address,
                      size_bytes);
}

bool heaplog_append_sample(heaplog_stream_t *stream, uint64_t time_ns,
                           uint64_t resident_bytes) {
  return append_numbers(stream, HEAPLOG_RECORD_SAMPLE, time_ns, &resident_bytes,
                        1);
}

bool heaplog_append_lost(heaplog_stream_t *stream, uint64_t time_ns,
                         uint64_t count) {
  count_lost(stream, count);
  if (atomic_load_explicit(&stream->busy, memory_order_relaxed) ||
      !enter(stream)) {
    return false;
  }
  bool written = make_room(stream, time_ns, 0);
  leave(stream);
  return written;
}

bool heaplog_append_end(heaplog_stream_t *stream, uint64_t time_ns) {
  return append_numbers(stream, HEAPLOG_RECORD_END, time_ns, NULL, 0);
}

void heaplog_append_thread_end(heaplog_stream_t *stream, uint64_t time_ns) {
  if (!stream->announced || !enter(stream)) {
    return;
  }
  assert(stream->used <= FILL_BYTES_MAX);
  uint64_t lost = atomic_exchange_explicit(&stream->lost_unreported, 0,
                                           memory_order_relaxed);
  if (lost != 0) {
    append_unreported(stream, time_ns, lost);
  }
  unsigned char *body = put_time(stream, frame_body(stream), time_ns);
  frame_commit(stream, HEAPLOG_RECORD_THREAD_END, body);
  leave(stream);
}

bool heaplog_append_stack(heaplog_stream_t *stream, uint32_t stack_id,
                          uint32_t parent_id, uint64_t instruction_pointer) {
  if (stack_id > HEAPLOG_STACK_ID_MAX || parent_id >= stack_id ||
      !begin_definition(stream, NUMBERS_BYTES_MAX)) {
    return false;
  }
  // Read after make_room(), which may have begun a chunk.
  uint64_t id_delta = (uint64_t)stack_id - stream->last_stack_node;
  uint64_t ip_delta = instruction_pointer - stream->last_instruction;
  unsigned char *body = frame_body(stream);
  body = put(body, heaplog_zigzag(id_delta));
  body = put(body, stack_id - parent_id);
  body = put(body, heaplog_zigzag(ip_delta));
  stream->last_stack_node = stack_id;
  stream->last_instruction = instruction_pointer;
  frame_commit(stream, HEAPLOG_RECORD_STACK, body);
  leave(stream);
  return true;
}

bool heaplog_append_module_load(heaplog_stream_t *stream,
                                const heaplog_module_t *module) {
  size_t path_bytes = strnlen(module->path, HEAPLOG_PATH_BYTES_MAX);
  if (module->start_address > module->end_address ||
      module->build_id_bytes > HEAPLOG_BUILD_ID_BYTES_MAX ||
      !begin_definition(stream, (uint32_t)path_bytes + 2 * NUMBERS_BYTES_MAX)) {
    return false;
  }
  unsigned char *body = frame_body(stream);
  body = put_time(stream, body, module->load_time_ns);
  body = heaplog_varint_put(body, module->id);
  body = heaplog_varint_put(body, module->start_address);
  body = heaplog_varint_put(body, module->end_address - module->start_address);
  body = heaplog_varint_put(body, module->load_bias);
  body = put_string(body, module->path, path_bytes);
  body = put_string(body, module->build_id, module->build_id_bytes);
  frame_commit(stream, HEAPLOG_RECORD_MODULE_LOAD, body);
  leave(stream);
  return true;
}

bool heaplog_append_module_unload(heaplog_stream_t *stream, uint64_t time_ns,
                                  uint32_t module_id) {
  if (!begin_definition(stream, NUMBERS_BYTES_MAX)) {
    return false;
  }
  unsigned char *body = put_time(stream, frame_body(stream), time_ns);
  body = heaplog_varint_put(body, module_id);
  frame_commit(stream, HEAPLOG_RECORD_MODULE_UNLOAD, body);
  leave(stream);
  return true;
}

bool heaplog_append_process(heaplog_stream_t *stream, const char *executable,
                            const char *command_line,
                            size_t command_line_bytes) {
  size_t path_bytes = strnlen(executable, HEAPLOG_PATH_BYTES_MAX);
  if (command_line_bytes > HEAPLOG_COMMAND_LINE_BYTES_MAX) {
    command_line_bytes = HEAPLOG_COMMAND_LINE_BYTES_MAX;
  }
  uint32_t record_bytes =
      (uint32_t)(path_bytes + command_line_bytes) + NUMBERS_BYTES_MAX;
  if (!begin_definition(stream, record_bytes)) {
    return false;
  }
  unsigned char *body = frame_body(stream);
  body = put_string(body, executable, path_bytes);
  body = put_string(body, command_line, command_line_bytes);
  frame_commit(stream, HEAPLOG_RECORD_PROCESS, body);
  leave(stream);
  return true;
}
