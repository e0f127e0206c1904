// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Records to events and definitions.
//
// The bytes have the right checksum, which proves nothing about who made them:
// every field is checked all the same. A compact event is decoded first and
// then seen to end inside the payload, which is why zeros follow the payload; a
// framed record's length is checked before its body is touched, and each field
// of the body against the body's end.
//
// Decoding is by bytes on disk, see docs/heaplog.md; the tests hold the two
// together.

#include <errno.h>
#include <string.h>

#include "leakcheck/heaplog_reader_internal.h"

// The body of a framed record. Once a field does not fit, `next` is NULL and
// all further fields are 0.
typedef struct body {
  const unsigned char *next;
  const unsigned char *end;
} body_t;

static uint64_t body_number(body_t *body) {
  uint64_t value = 0;
  if (body->next == NULL) {
    return 0;
  }
  body->next = heaplog_varint_get(body->next, &value);
  if (body->next == NULL || body->next > body->end) {
    body->next = NULL;
    return 0;
  }
  return value;
}

static uint32_t body_number32(body_t *body) {
  uint64_t value = body_number(body);
  if (value > UINT32_MAX) {
    body->next = NULL;
    return 0;
  }
  return (uint32_t)value;
}

// Returns a string's first byte and stores its length.
static const unsigned char *body_string(body_t *body, size_t bytes_max,
                                        size_t *out_bytes) {
  uint64_t size_bytes = body_number(body);
  const unsigned char *string = body->next;
  if (string == NULL || size_bytes > bytes_max ||
      size_bytes > (size_t)(body->end - string)) {
    body->next = NULL;
    *out_bytes = 0;
    return NULL;
  }
  body->next = string + size_bytes;
  *out_bytes = size_bytes;
  return string;
}

// Moves the lane's time on. Returns false when it would wrap.
static inline bool add_time(heaplog_lane_t *lane, uint64_t delta_ns) {
  return !__builtin_add_overflow(lane->last_time_ns, delta_ns,
                                 &lane->last_time_ns);
}

static void body_time(heaplog_lane_t *lane, body_t *body) {
  if (!add_time(lane, body_number(body))) {
    body->next = NULL;
  }
}

static heaplog_error_code_t decode_thread(heaplog_lane_t *lane, body_t *body,
                                          heaplog_definitions_t *definitions) {
  heaplog_thread_t thread = {.end_time_ns = UINT64_MAX};
  size_t name_bytes;
  uint32_t id = body_number32(body);
  thread.tid = body_number(body);
  thread.start_time_ns = body_number(body);
  const unsigned char *name =
      body_string(body, sizeof(thread.name) - 1, &name_bytes);
  if (body->next == NULL) {
    return HEAPLOG_ERROR_RECORD;
  }
  memcpy(thread.name, name, name_bytes);
  return heaplog_definitions_add_thread(definitions, id, &thread,
                                        &lane->thread_index);
}

static heaplog_error_code_t decode_thread_end(
    heaplog_lane_t *lane, body_t *body, heaplog_definitions_t *definitions) {
  body_time(lane, body);
  if (body->next == NULL || lane->thread_index == HEAPLOG_NO_THREAD) {
    return HEAPLOG_ERROR_RECORD;
  }
  definitions->threads[lane->thread_index].end_time_ns = lane->last_time_ns;
  lane->thread_index = HEAPLOG_NO_THREAD;
  return HEAPLOG_OK;
}

static heaplog_error_code_t decode_stack(heaplog_lane_t *lane, body_t *body,
                                         heaplog_definitions_t *definitions) {
  uint64_t id = lane->last_stack_node + heaplog_unzigzag(body_number(body));
  uint64_t up = body_number(body);
  uint64_t instruction =
      lane->last_instruction + heaplog_unzigzag(body_number(body));
  if (body->next == NULL || id > HEAPLOG_STACK_ID_MAX || up == 0 || up > id) {
    return HEAPLOG_ERROR_RECORD;
  }
  lane->last_stack_node = (uint32_t)id;
  lane->last_instruction = instruction;
  return heaplog_definitions_add_stack(definitions, (uint32_t)id,
                                       (uint32_t)(id - up), instruction);
}

static heaplog_error_code_t decode_module_load(
    heaplog_lane_t *lane, body_t *body, heaplog_definitions_t *definitions) {
  heaplog_module_t module = {.unload_time_ns = UINT64_MAX};
  size_t path_bytes;
  size_t build_id_bytes;
  body_time(lane, body);
  module.load_time_ns = lane->last_time_ns;
  module.id = body_number32(body);
  module.start_address = body_number(body);
  uint64_t range_bytes = body_number(body);
  module.load_bias = body_number(body);
  const unsigned char *path =
      body_string(body, HEAPLOG_PATH_BYTES_MAX, &path_bytes);
  const unsigned char *build_id =
      body_string(body, HEAPLOG_BUILD_ID_BYTES_MAX, &build_id_bytes);
  if (body->next == NULL || memchr(path, '\0', path_bytes) != NULL ||
      __builtin_add_overflow(module.start_address, range_bytes,
                             &module.end_address)) {
    return HEAPLOG_ERROR_RECORD;
  }
  module.path = (const char *)path;
  module.build_id_bytes = (uint32_t)build_id_bytes;
  memcpy(module.build_id, build_id, build_id_bytes);
  return heaplog_definitions_add_module(definitions, &module, path_bytes);
}

static heaplog_error_code_t decode_module_unload(
    heaplog_lane_t *lane, body_t *body, heaplog_definitions_t *definitions) {
  body_time(lane, body);
  uint32_t id = body_number32(body);
  if (body->next == NULL) {
    return HEAPLOG_ERROR_RECORD;
  }
  heaplog_definitions_unload_module(definitions, id, lane->last_time_ns);
  return HEAPLOG_OK;
}

static heaplog_error_code_t decode_process(body_t *body,
                                           heaplog_definitions_t *definitions,
                                           heaplog_info_t *info) {
  size_t executable_bytes;
  size_t command_line_bytes;
  const unsigned char *executable =
      body_string(body, HEAPLOG_PATH_BYTES_MAX, &executable_bytes);
  const unsigned char *command_line =
      body_string(body, HEAPLOG_COMMAND_LINE_BYTES_MAX, &command_line_bytes);
  if (body->next == NULL || memchr(executable, '\0', executable_bytes)) {
    return HEAPLOG_ERROR_RECORD;
  }
  heaplog_error_code_t code =
      heaplog_definitions_set_process(definitions, executable, executable_bytes,
                                      command_line, command_line_bytes);
  if (code == HEAPLOG_OK) {
    info->executable = definitions->executable;
    info->command_line = definitions->command_line;
    info->command_line_bytes = definitions->command_line_bytes;
  }
  return code;
}

// MAP, UNMAP, SAMPLE, LOST, END: to lane->head.
static heaplog_error_code_t decode_framed_event(heaplog_lane_t *lane,
                                                unsigned int type,
                                                body_t *body) {
  heaplog_event_t event = {.thread_index = lane->thread_index};
  body_time(lane, body);
  event.time_ns = lane->last_time_ns;
  switch (type) {
    case HEAPLOG_RECORD_MAP:
    case HEAPLOG_RECORD_UNMAP:
      event.kind = type == HEAPLOG_RECORD_MAP ? HEAPLOG_MAP : HEAPLOG_UNMAP;
      event.address = body_number(body);
      event.size_bytes = body_number(body);
      break;
    case HEAPLOG_RECORD_SAMPLE:
      event.kind = HEAPLOG_SAMPLE;
      event.size_bytes = body_number(body);
      break;
    case HEAPLOG_RECORD_LOST:
      event.kind = HEAPLOG_LOST;
      event.size_bytes = body_number(body);
      break;
    default:
      assert(type == HEAPLOG_RECORD_END);
      event.kind = HEAPLOG_END;
      break;
  }
  uint64_t end_address;
  if (body->next == NULL || lane->thread_index == HEAPLOG_NO_THREAD ||
      __builtin_add_overflow(event.address, event.size_bytes, &end_address)) {
    return HEAPLOG_ERROR_RECORD;
  }
  lane->head = event;
  lane->state = HEAPLOG_LANE_READY;
  return HEAPLOG_OK;
}

static heaplog_error_code_t decode_body(heaplog_lane_t *lane, unsigned int type,
                                        body_t *body,
                                        heaplog_definitions_t *definitions,
                                        heaplog_info_t *info) {
  switch (type) {
    case HEAPLOG_RECORD_THREAD:
      return decode_thread(lane, body, definitions);
    case HEAPLOG_RECORD_THREAD_END:
      return decode_thread_end(lane, body, definitions);
    case HEAPLOG_RECORD_STACK:
      return decode_stack(lane, body, definitions);
    case HEAPLOG_RECORD_MODULE_LOAD:
      return decode_module_load(lane, body, definitions);
    case HEAPLOG_RECORD_MODULE_UNLOAD:
      return decode_module_unload(lane, body, definitions);
    case HEAPLOG_RECORD_PROCESS:
      return decode_process(body, definitions, info);
    case HEAPLOG_RECORD_END:
      info->clean_end = true;
      return decode_framed_event(lane, type, body);
    case HEAPLOG_RECORD_MAP:
    case HEAPLOG_RECORD_UNMAP:
    case HEAPLOG_RECORD_SAMPLE:
    case HEAPLOG_RECORD_LOST:
      return decode_framed_event(lane, type, body);
    case 0:
      return HEAPLOG_ERROR_RECORD;
    default:
      return HEAPLOG_OK;  // Of a later minor version.
  }
}

// A framed record at lane->next. An event's goes to lane->head.
static heaplog_error_code_t decode_framed(heaplog_lane_t *lane,
                                          heaplog_definitions_t *definitions,
                                          heaplog_info_t *info) {
  unsigned int type = *lane->next;
  body_t frame = {.next = lane->next + 1, .end = lane->end};
  uint64_t body_bytes = body_number(&frame);
  if (frame.next == NULL || body_bytes > (size_t)(lane->end - frame.next)) {
    return HEAPLOG_ERROR_RECORD;
  }
  body_t body = {.next = frame.next, .end = frame.next + body_bytes};
  const unsigned char *end = body.end;
  heaplog_error_code_t code = decode_body(lane, type, &body, definitions, info);
  if (code == HEAPLOG_OK) {
    lane->next = end;
  }
  return code;
}

// Reads a varint; after one that is too long, `bytes` is NULL and stays it.
static inline const unsigned char *get(const unsigned char *bytes,
                                       uint64_t *out_value) {
  return bytes == NULL ? NULL : heaplog_varint_get(bytes, out_value);
}

// A compact event at lane->next, to lane->head.
static inline bool decode_compact(heaplog_lane_t *lane) {
  static const uint32_t kKinds[4] = {HEAPLOG_ALLOC, HEAPLOG_FREE,
                                     HEAPLOG_RESIZE, 0};
  const unsigned char *bytes = lane->next;
  const unsigned int tag = *bytes++;
  const uint32_t kind = kKinds[(tag >> HEAPLOG_COMPACT_KIND_SHIFT) & 3];
  uint64_t time_delta = 0;
  uint64_t address_delta = 0;
  bytes = heaplog_varint_get(bytes, &time_delta);
  bytes = get(bytes, &address_delta);
  address_delta = heaplog_unzigzag(address_delta);
  if ((tag & HEAPLOG_COMPACT_UNITS) != 0) {
    address_delta *= HEAPLOG_ADDRESS_UNIT_BYTES;
  }
  lane->last_address += address_delta;
  uint32_t stack_id = kind == HEAPLOG_FREE ? 0 : lane->last_stack_id;
  if ((tag & HEAPLOG_COMPACT_STACK) != 0) {
    uint64_t delta = 0;
    bytes = get(bytes, &delta);
    uint64_t id = lane->last_stack_id + heaplog_unzigzag(delta);
    if (id > HEAPLOG_STACK_ID_MAX) {
      return false;
    }
    lane->last_stack_id = stack_id = (uint32_t)id;
  }
  if ((tag & HEAPLOG_COMPACT_SIZE) != 0) {
    lane->last_slack_bytes = 0;
    bytes = get(bytes, &lane->last_size_bytes);
    if ((tag & HEAPLOG_COMPACT_SLACK) != 0) {
      bytes = get(bytes, &lane->last_slack_bytes);
    }
  }
  if (bytes == NULL || bytes > lane->end || !add_time(lane, time_delta)) {
    return false;
  }
  lane->next = bytes;
  lane->head = (heaplog_event_t){.time_ns = lane->last_time_ns,
                                 .address = lane->last_address,
                                 .stack_id = stack_id,
                                 .thread_index = lane->thread_index,
                                 .kind = kind};
  if (kind == HEAPLOG_FREE) {
    return (tag & (HEAPLOG_COMPACT_RESERVED | HEAPLOG_COMPACT_SIZE |
                   HEAPLOG_COMPACT_SLACK)) == 0;
  }
  lane->head.size_bytes = lane->last_size_bytes;
  uint64_t end_address;
  return !__builtin_add_overflow(lane->last_size_bytes, lane->last_slack_bytes,
                                 &lane->head.usable_bytes) &&
         !__builtin_add_overflow(lane->last_address, lane->head.usable_bytes,
                                 &end_address) &&
         (tag & HEAPLOG_COMPACT_RESERVED) == 0 &&
         (tag & (HEAPLOG_COMPACT_SIZE | HEAPLOG_COMPACT_SLACK)) !=
             HEAPLOG_COMPACT_SLACK &&
         kind != 0;
}

void heaplog_lane_fail(heaplog_lane_t *lane, uint64_t time_ns,
                       heaplog_failure_t failure) {
  lane->state = HEAPLOG_LANE_FAILED;
  lane->head = (heaplog_event_t){.time_ns = time_ns};
  lane->failure = failure;
}

// Fails the lane for the record at `record`.
static void fail_record(heaplog_lane_t *lane, const unsigned char *record,
                        uint64_t time_ns, heaplog_error_code_t code) {
  heaplog_failure_t failure = {
      .code = code,
      .status = code == HEAPLOG_ERROR_NO_MEMORY ? -ENOMEM : -EPROTO,
      .byte_offset = lane->payload_offset + (uint64_t)(record - lane->payload),
      .text = code == HEAPLOG_ERROR_NO_MEMORY ? "out of memory"
                                              : "a record is malformed",
  };
  heaplog_lane_fail(lane, time_ns, failure);
}

void heaplog_decode_next(heaplog_lane_t *lane,
                         heaplog_definitions_t *definitions,
                         heaplog_info_t *info) {
  lane->state = HEAPLOG_LANE_IDLE;
  while (lane->next < lane->end) {
    const unsigned char *record = lane->next;
    uint64_t time_ns = lane->last_time_ns;
    heaplog_error_code_t code = HEAPLOG_OK;
    if (*record >= HEAPLOG_COMPACT) {
      if (decode_compact(lane) && lane->thread_index != HEAPLOG_NO_THREAD) {
        lane->state = HEAPLOG_LANE_READY;
        return;
      }
      code = HEAPLOG_ERROR_RECORD;
    } else {
      code = decode_framed(lane, definitions, info);
    }
    if (code != HEAPLOG_OK) {
      fail_record(lane, record, time_ns, code);
      return;
    }
    if (lane->state == HEAPLOG_LANE_READY) {
      return;
    }
  }
}

void heaplog_decode_begin(heaplog_lane_t *lane,
                          const heaplog_chunk_header_t *header,
                          unsigned char *payload, uint32_t payload_bytes,
                          uint64_t payload_offset) {
  lane->payload = payload;
  lane->next = payload;
  lane->end = payload + payload_bytes;
  lane->payload_offset = payload_offset;
  lane->last_time_ns = header->base_ns;
  lane->last_address = 0;
  lane->last_size_bytes = 0;
  lane->last_slack_bytes = 0;
  lane->last_stack_id = 0;
  lane->last_stack_node = 0;
  lane->last_instruction = 0;
  lane->thread_index = HEAPLOG_NO_THREAD;
}
