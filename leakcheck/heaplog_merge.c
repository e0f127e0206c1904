// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Chunks to lanes to one order.
//
//   chunks of the file  0 1 2 3 4 5 | 6 7 ...
//                       found       ^ frontier: not looked at yet
//   lane 0:  [0 being decoded] -> 2 -> 5        head event --.
//   lane 1:  [1 being decoded] -> 3             head event ----> binary heap by
//   lane 2:  [4 being decoded]                  head event --'   (time, rank,
//                                                                 lane)
//
// A chunk is *found* when its header is read and verified; it joins the queue
// of its lane. Its payload is read, and verified, when the lane gets there.
//
// The hard problem is to deliver nothing that could turn out to have come too
// early: an event earlier than it may be in a chunk not found yet, or in one
// that proves damaged. Each chunk header has a `horizon`: no event in a chunk
// of greater number is earlier. So
//
//   1. an event is delivered only when it is earlier than the greatest horizon
//      found, or all chunks are found; else the frontier moves on by a chunk;
//   2. a chunk whose header is damaged stops the frontier, and the log ends
//      with an error where rule 1 says so;
//   3. a chunk whose payload is damaged, or a lane in which something is
//      malformed, is a *failed* lane whose head is the failure, at the time
//      that all it may lack is not earlier than. When that head is the least,
//      the log ends with the error. Failures sort before events.
//
// By 1 the frontier runs ahead of the events by one chunk, so the queues are
// short unless the file is forged; they cost 4 bytes a chunk either way.
//
// A chunk that was never begun costs a forger nothing, being a hole in a sparse
// file. A lane leaves one at most, when its process dies, so a log that has
// more of them than there can be lanes is refused there.

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "leakcheck/heaplog_reader_internal.h"

#define NO_CHUNK UINT32_MAX

// At one instant memory must be free before it is mapped or handed out.
static inline unsigned int rank_of(uint32_t kind) {
  static const unsigned char kRanks[] = {
      [0] = 0,  // A failure.
      [HEAPLOG_LOST] = 1,
      [HEAPLOG_FREE] = 2,
      [HEAPLOG_UNMAP] = 3,
      [HEAPLOG_MAP] = 4,
      [HEAPLOG_RESIZE] = 5,
      [HEAPLOG_ALLOC] = 6,
      [HEAPLOG_SAMPLE] = 7,
      [HEAPLOG_END] = 8,
  };
  return kRanks[kind];
}

static inline bool is_before(const heaplog_lane_t *a, const heaplog_lane_t *b) {
  if (a->head.time_ns != b->head.time_ns) {
    return a->head.time_ns < b->head.time_ns;
  }
  unsigned int rank_a = rank_of(a->head.kind);
  unsigned int rank_b = rank_of(b->head.kind);
  return rank_a != rank_b ? rank_a < rank_b : a->lane < b->lane;
}

static void heap_sift_down(heaplog_reader_t *reader, uint32_t i) {
  heaplog_lane_t **heap = reader->heap;
  heaplog_lane_t *lane = heap[i];
  for (;;) {
    uint32_t child = 2 * i + 1;
    if (child >= reader->heap_count) {
      break;
    }
    if (child + 1 < reader->heap_count &&
        is_before(heap[child + 1], heap[child])) {
      child++;
    }
    if (!is_before(heap[child], lane)) {
      break;
    }
    heap[i] = heap[child];
    i = child;
  }
  heap[i] = lane;
}

static void heap_push(heaplog_reader_t *reader, heaplog_lane_t *lane) {
  assert(reader->heap_count < reader->lane_count);
  uint32_t i = reader->heap_count++;
  while (i > 0 && is_before(lane, reader->heap[(i - 1) / 2])) {
    reader->heap[i] = reader->heap[(i - 1) / 2];
    i = (i - 1) / 2;
  }
  reader->heap[i] = lane;
}

static void heap_pop(heaplog_reader_t *reader) {
  reader->heap[0] = reader->heap[--reader->heap_count];
  if (reader->heap_count > 0) {
    heap_sift_down(reader, 0);
  }
}

static heaplog_failure_t no_memory(uint64_t byte_offset) {
  return (heaplog_failure_t){.code = HEAPLOG_ERROR_NO_MEMORY,
                             .status = -ENOMEM,
                             .byte_offset = byte_offset,
                             .text = "out of memory"};
}

static heaplog_failure_t bad_chunk(uint64_t byte_offset, const char *text) {
  return (heaplog_failure_t){.code = HEAPLOG_ERROR_CHUNK,
                             .status = -EPROTO,
                             .byte_offset = byte_offset,
                             .text = text};
}

// Reads the next chunk of the lane's queue and puts the lane at its beginning;
// or fails the lane.
static void begin_chunk(heaplog_reader_t *reader, heaplog_lane_t *lane) {
  uint32_t index = lane->first_chunk;
  uint64_t offset = heaplog_file_chunk_offset(&reader->file, index);
  lane->first_chunk = reader->next_chunk[index];
  free(lane->payload);
  lane->payload = NULL;
  heaplog_chunk_header_t header;
  uint32_t payload_bytes = 0;
  heaplog_failure_t found = heaplog_file_read_chunk(
      &reader->file, index, reader->chunk_bytes, &header, &payload_bytes);
  // What was verified once can be gone: others may write to the file.
  if (found.code == HEAPLOG_OK &&
      (header.commit == 0 || header.lane != lane->lane)) {
    found = bad_chunk(offset, "a chunk changed while it was read");
  }
  if (found.code == HEAPLOG_OK && header.sequence != lane->next_sequence) {
    found = bad_chunk(offset + offsetof(heaplog_chunk_header_t, sequence),
                      "a chunk of this lane is missing");
    header.base_ns = lane->last_time_ns;
  }
  if (found.code == HEAPLOG_OK && header.base_ns < lane->last_time_ns) {
    found = bad_chunk(offset + offsetof(heaplog_chunk_header_t, base_ns),
                      "a lane's time goes back");
  }
  if (found.code == HEAPLOG_OK) {
    lane->payload =
        calloc(1, (size_t)payload_bytes + HEAPLOG_PAYLOAD_PADDING_BYTES);
    if (lane->payload == NULL) {
      found = no_memory(offset);
    }
  }
  if (found.code != HEAPLOG_OK) {
    // All that the lane may lack is in this chunk or after it.
    uint64_t time_ns = header.base_ns > lane->last_time_ns ? header.base_ns
                                                           : lane->last_time_ns;
    heaplog_lane_fail(lane, time_ns, found);
    return;
  }
  memcpy(lane->payload, reader->chunk_bytes + sizeof(header), payload_bytes);
  lane->next_sequence++;
  heaplog_decode_begin(lane, &header, lane->payload, payload_bytes,
                       offset + sizeof(header));
}

// Moves a lane on to its next event, if the chunks found so far have one.
static void advance(heaplog_reader_t *reader, heaplog_lane_t *lane) {
  heaplog_decode_next(lane, &reader->definitions, &reader->info);
  while (lane->state == HEAPLOG_LANE_IDLE && lane->first_chunk != NO_CHUNK) {
    begin_chunk(reader, lane);
    if (lane->state == HEAPLOG_LANE_IDLE) {
      heaplog_decode_next(lane, &reader->definitions, &reader->info);
    }
  }
  if (lane->state == HEAPLOG_LANE_IDLE) {
    free(lane->payload);
    lane->payload = NULL;
    lane->next = lane->end = NULL;
  }
}

// Makes room for one more found chunk and for a lane number.
static bool reserve(heaplog_reader_t *reader, uint32_t lane_number) {
  if (reader->frontier >= reader->next_chunk_capacity) {
    uint64_t capacity = (uint64_t)reader->next_chunk_capacity * 2 + 256;
    if (capacity > UINT32_MAX) {
      return false;
    }
    uint32_t *moved =
        reallocarray(reader->next_chunk, capacity, sizeof(*moved));
    if (moved == NULL) {
      return false;
    }
    reader->next_chunk = moved;
    reader->next_chunk_capacity = (uint32_t)capacity;
  }
  if (lane_number >= reader->lanes_capacity) {
    uint32_t capacity = (lane_number + 1) * 2;
    heaplog_lane_t **moved =
        reallocarray(reader->lanes, capacity, sizeof(*moved));
    if (moved == NULL) {
      return false;
    }
    memset(moved + reader->lanes_capacity, 0,
           (capacity - reader->lanes_capacity) * sizeof(*moved));
    reader->lanes = moved;
    reader->lanes_capacity = capacity;
  }
  return true;
}

// Returns the lane of a number, new if need be; NULL without memory.
static heaplog_lane_t *ensure_lane(heaplog_reader_t *reader, uint32_t number) {
  if (reader->lanes[number] != NULL) {
    return reader->lanes[number];
  }
  heaplog_lane_t **heap =
      reallocarray(reader->heap, (size_t)reader->lane_count + 1, sizeof(*heap));
  if (heap == NULL) {
    return NULL;
  }
  reader->heap = heap;
  heaplog_lane_t *lane = calloc(1, sizeof(*lane));
  if (lane == NULL) {
    return NULL;
  }
  lane->lane = number;
  lane->first_chunk = lane->last_chunk = NO_CHUNK;
  reader->lanes[number] = lane;
  reader->lane_count++;
  return lane;
}

// Finds the chunk at the frontier. Returns what stops the frontier there.
static heaplog_failure_t find_chunk(heaplog_reader_t *reader) {
  const uint32_t index = reader->frontier;
  const uint64_t offset = heaplog_file_chunk_offset(&reader->file, index);
  heaplog_chunk_header_t header;
  heaplog_failure_t found =
      heaplog_file_read_chunk_header(&reader->file, index, &header);
  if (found.code != HEAPLOG_OK) {
    return found;
  }
  if (header.commit == 0 && reader->unbegun_count == HEAPLOG_LANES_MAX) {
    return (heaplog_failure_t){.code = HEAPLOG_ERROR_LIMIT,
                               .status = -EPROTO,
                               .byte_offset = offset,
                               .text = "too many chunks were never begun"};
  }
  if (!reserve(reader, header.commit == 0 ? 0 : header.lane)) {
    return no_memory(offset);
  }
  reader->next_chunk[index] = NO_CHUNK;
  if (header.commit == 0) {
    // Its thread was stopped between taking it and writing to it.
    reader->unbegun_count++;
    reader->frontier++;
    return found;
  }
  if (header.base_ns < reader->horizon_ns ||
      header.base_ns < header.horizon_ns) {
    return bad_chunk(offset + offsetof(heaplog_chunk_header_t, base_ns),
                     "a chunk begins before the horizon");
  }
  heaplog_lane_t *lane = ensure_lane(reader, header.lane);
  if (lane == NULL) {
    return no_memory(offset);
  }
  reader->frontier++;
  if (header.horizon_ns > reader->horizon_ns) {
    reader->horizon_ns = header.horizon_ns;
  }
  if (lane->first_chunk == NO_CHUNK) {
    lane->first_chunk = index;
  } else {
    reader->next_chunk[lane->last_chunk] = index;
  }
  lane->last_chunk = index;
  if (lane->state == HEAPLOG_LANE_IDLE) {
    advance(reader, lane);
    if (lane->state != HEAPLOG_LANE_IDLE) {
      heap_push(reader, lane);
    }
  }
  return found;
}

static bool all_found(const heaplog_reader_t *reader) {
  return reader->frontier == reader->file.chunk_count;
}

static void end_with(heaplog_reader_t *reader, heaplog_failure_t failure) {
  reader->final = failure;
  reader->ended = true;
}

// Finds chunks until the least head may be delivered. Returns false at the end
// of the log.
static bool prepare(heaplog_reader_t *reader) {
  while (!reader->ended) {
    heaplog_lane_t *least = reader->heap_count > 0 ? reader->heap[0] : NULL;
    if (least != NULL &&
        (all_found(reader) || least->head.time_ns < reader->horizon_ns)) {
      if (least->state == HEAPLOG_LANE_READY) {
        return true;
      }
      end_with(reader, least->failure);
    } else if (all_found(reader)) {
      end_with(reader, (heaplog_failure_t){.code = HEAPLOG_OK});
    } else {
      heaplog_failure_t failure = find_chunk(reader);
      if (failure.code != HEAPLOG_OK) {
        end_with(reader, failure);
      }
    }
  }
  return false;
}

// Delivers events of the least lane until another's turn has come. At least
// one, which prepare() has cleared.
static size_t deliver(heaplog_reader_t *reader, heaplog_event_t *out_events,
                      size_t capacity) {
  heaplog_lane_t *lane = reader->heap[0];
  const heaplog_lane_t *second = NULL;
  if (reader->heap_count > 1) {
    second = reader->heap[1];
    if (reader->heap_count > 2 && is_before(reader->heap[2], second)) {
      second = reader->heap[2];
    }
  }
  const bool bounded = !all_found(reader);
  const uint64_t horizon_ns = reader->horizon_ns;
  size_t count = 0;
  do {
    out_events[count++] = lane->head;
    advance(reader, lane);
  } while (count < capacity && lane->state == HEAPLOG_LANE_READY &&
           (second == NULL || is_before(lane, second)) &&
           !(bounded && lane->head.time_ns >= horizon_ns));
  if (lane->state == HEAPLOG_LANE_IDLE) {
    heap_pop(reader);
  } else {
    heap_sift_down(reader, 0);
  }
  return count;
}

size_t heaplog_merge_read(heaplog_reader_t *reader, heaplog_event_t *out_events,
                          size_t capacity) {
  size_t count = 0;
  while (count < capacity && prepare(reader)) {
    count += deliver(reader, out_events + count, capacity - count);
  }
  return count;
}

void heaplog_merge_clear(heaplog_reader_t *reader) {
  heaplog_definitions_clear(&reader->definitions);
  for (uint32_t i = 0; i < reader->lanes_capacity; i++) {
    if (reader->lanes[i] != NULL) {
      free(reader->lanes[i]->payload);
      free(reader->lanes[i]);
    }
  }
  free(reader->lanes);
  free(reader->heap);
  free(reader->next_chunk);
  *reader = (heaplog_reader_t){.file = reader->file,
                               .chunk_bytes = reader->chunk_bytes};
}
