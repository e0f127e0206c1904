// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The parts that the reader's sources share: heaplog_file.c (bytes),
// heaplog_decode.c (records), heaplog_definitions.c (what records define),
// heaplog_merge.c (chunks to lanes to one order) and heaplog_reader.c (the
// public face).

#ifndef MY_ALLOC_LEAKCHECK_HEAPLOG_READER_INTERNAL_H_
#define MY_ALLOC_LEAKCHECK_HEAPLOG_READER_INTERNAL_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "leakcheck/heaplog_format.h"
#include "leakcheck/heaplog_reader.h"

#ifdef __cplusplus
extern "C" {
#endif

// What went wrong, small enough to have one a lane. `code` 0: nothing.
typedef struct heaplog_failure {
  heaplog_error_code_t code;
  int status;  // -errno.
  uint64_t byte_offset;
  const char *text;  // A literal.
} heaplog_failure_t;

// ---- heaplog_file.c ----

typedef struct heaplog_file {
  int descriptor;
  bool hardware_crc;
  heaplog_file_header_t header;  // Verified.
  uint32_t chunk_count;
  uint64_t size_bytes;
} heaplog_file_t;

// Opens the file and verifies its header. On failure nothing is open.
heaplog_failure_t heaplog_file_open(heaplog_file_t *file, const char *path);
void heaplog_file_close(heaplog_file_t *file);

// Reads and verifies the header of an open file again.
heaplog_failure_t heaplog_file_read_header(heaplog_file_t *file);

uint64_t heaplog_file_chunk_offset(const heaplog_file_t *file, uint32_t index);

// Reads a chunk's header and verifies it. One that was not begun has commit 0
// in *out_header, and nothing else there means anything.
heaplog_failure_t heaplog_file_read_chunk_header(
    const heaplog_file_t *file, uint32_t index,
    heaplog_chunk_header_t *out_header);

// Reads a whole chunk into `bytes` (HEAPLOG_CHUNK_BYTES) and verifies header
// and payload. On failure *out_header is set when the header is right, else
// zeroed. *out_payload_bytes is set on success.
heaplog_failure_t heaplog_file_read_chunk(const heaplog_file_t *file,
                                          uint32_t index, unsigned char *bytes,
                                          heaplog_chunk_header_t *out_header,
                                          uint32_t *out_payload_bytes);

// ---- heaplog_definitions.c ----

#define HEAPLOG_STACK_PAGE_NODES 1024u
#define HEAPLOG_STACK_PAGES \
  ((HEAPLOG_STACK_ID_MAX + 1) / HEAPLOG_STACK_PAGE_NODES)

typedef struct heaplog_stack_node {
  uint64_t instruction_pointer;
  uint32_t parent_id;
  uint32_t is_defined;
} heaplog_stack_node_t;

// Numbers of the file to indices in order of appearance. Open addressing; its
// size follows the number of entries, whatever the numbers are.
typedef struct heaplog_id_map {
  struct heaplog_id_slot {
    uint32_t id;
    uint32_t index_plus_one;  // 0: empty.
  } * slots;
  uint64_t seed;        // Random, from the first entry on.
  uint64_t num_probes;  // Slots looked at so far, for tests.
  uint32_t capacity;    // A power of two, or 0.
  uint32_t count;
} heaplog_id_map_t;

typedef struct heaplog_definitions {
  heaplog_stack_node_t **stack_pages;  // HEAPLOG_STACK_PAGES; NULL until used.
  uint32_t stack_id_end;
  heaplog_id_map_t thread_ids;
  heaplog_thread_t *threads;
  size_t thread_count;
  size_t thread_capacity;
  heaplog_id_map_t module_ids;
  heaplog_module_t *modules;
  size_t module_count;
  size_t module_capacity;
  char *executable;    // NULL: not met.
  char *command_line;  // With a NUL of ours behind.
  size_t command_line_bytes;
} heaplog_definitions_t;

// Each returns HEAPLOG_OK, HEAPLOG_ERROR_NO_MEMORY, or HEAPLOG_ERROR_RECORD
// when the definition contradicts an earlier one or itself.
heaplog_error_code_t heaplog_definitions_add_stack(
    heaplog_definitions_t *definitions, uint32_t stack_id, uint32_t parent_id,
    uint64_t instruction_pointer);
// Known ids are given a new name. Sets *out_index in all events' terms.
heaplog_error_code_t heaplog_definitions_add_thread(
    heaplog_definitions_t *definitions, uint32_t id,
    const heaplog_thread_t *thread, uint32_t *out_index);
// Copies `path_bytes` of the path.
heaplog_error_code_t heaplog_definitions_add_module(
    heaplog_definitions_t *definitions, const heaplog_module_t *module,
    size_t path_bytes);
void heaplog_definitions_unload_module(heaplog_definitions_t *definitions,
                                       uint32_t id, uint64_t time_ns);
heaplog_error_code_t heaplog_definitions_set_process(
    heaplog_definitions_t *definitions, const unsigned char *executable,
    size_t executable_bytes, const unsigned char *command_line,
    size_t command_line_bytes);
const heaplog_stack_node_t *heaplog_definitions_stack(
    const heaplog_definitions_t *definitions, uint32_t stack_id);
// Frees everything and leaves *definitions zeroed.
void heaplog_definitions_clear(heaplog_definitions_t *definitions);

// ---- heaplog_decode.c ----

// Zeros behind a payload, so that a record can be decoded before it is known
// to end inside.
#define HEAPLOG_PAYLOAD_PADDING_BYTES 64u
static_assert(HEAPLOG_PAYLOAD_PADDING_BYTES >= HEAPLOG_COMPACT_BYTES_MAX, "");

#define HEAPLOG_NO_THREAD UINT32_MAX

typedef enum heaplog_lane_state {
  HEAPLOG_LANE_IDLE = 0,    // Nothing left of the chunks found so far.
  HEAPLOG_LANE_READY = 1,   // `head` is the next event.
  HEAPLOG_LANE_FAILED = 2,  // `failure` comes at `head.time_ns`.
} heaplog_lane_state_t;

typedef struct heaplog_lane {
  heaplog_lane_state_t state;
  uint32_t lane;
  heaplog_event_t head;
  // Payload of the current chunk, padded; NULL: none.
  unsigned char *payload;
  const unsigned char *next;
  const unsigned char *end;
  uint64_t payload_offset;  // In the file.
  // As in the writer's stream; times since the start of the log.
  uint64_t last_time_ns;
  uint64_t last_address;
  uint64_t last_size_bytes;
  uint64_t last_slack_bytes;
  uint32_t last_stack_id;
  uint32_t last_stack_node;
  uint64_t last_instruction;
  uint32_t thread_index;  // HEAPLOG_NO_THREAD: no THREAD yet in this chunk.
  // Chunks found and not begun: first and last of a list through
  // heaplog_reader.next_chunk. UINT32_MAX: none.
  uint32_t first_chunk;
  uint32_t last_chunk;
  uint32_t next_sequence;  // Of the chunk to begin next.
  heaplog_failure_t failure;
} heaplog_lane_t;

// Decodes up to and including the next event of the current chunk, which goes
// to lane->head and makes it READY, or to the chunk's end, which makes it IDLE,
// or to a bad record, which makes it FAILED. Definitions go to *definitions.
void heaplog_decode_next(heaplog_lane_t *lane,
                         heaplog_definitions_t *definitions,
                         heaplog_info_t *info);

// Puts a lane at the beginning of a chunk's payload.
void heaplog_decode_begin(heaplog_lane_t *lane,
                          const heaplog_chunk_header_t *header,
                          unsigned char *payload, uint32_t payload_bytes,
                          uint64_t payload_offset);

// Makes the lane fail at `time_ns` in the merged order.
void heaplog_lane_fail(heaplog_lane_t *lane, uint64_t time_ns,
                       heaplog_failure_t failure);

// ---- heaplog_merge.c ----

struct heaplog_reader {
  heaplog_file_t file;
  heaplog_info_t info;
  heaplog_definitions_t definitions;
  unsigned char *chunk_bytes;  // HEAPLOG_CHUNK_BYTES; scratch.
  uint32_t frontier;           // Chunks below are found.
  uint32_t unbegun_count;      // Of these.
  uint64_t horizon_ns;         // The greatest found.
  uint32_t *next_chunk;        // Next in the same lane, for each chunk found.
  uint32_t next_chunk_capacity;
  heaplog_lane_t **lanes;  // By lane number; NULL: no chunk of it found.
  uint32_t lanes_capacity;
  uint32_t lane_count;
  heaplog_lane_t **heap;    // Lanes not IDLE, the least head first.
  uint32_t heap_count;      // Capacity: lane_count.
  heaplog_failure_t final;  // Delivered as the end of the log.
  bool ended;
};

// Delivers up to `capacity` events; fewer at the end of the log only, which
// sets reader->ended and reader->final.
size_t heaplog_merge_read(heaplog_reader_t *reader, heaplog_event_t *out_events,
                          size_t capacity);

// Frees all that reading has built up, and goes back to before the first event.
void heaplog_merge_clear(heaplog_reader_t *reader);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_HEAPLOG_READER_INTERNAL_H_
