// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The bytes of a heaplog, as docs/heaplog.md describes them. Internal to the
// writer and the reader.
//
//   0            header_bytes      + 65536          + 65536
//   +------------+-----------------+----------------+----
//   | file header| chunk 0         | chunk 1        | ...
//   +------------+-----------------+----------------+----
//                 \_ commit word, header, records ..., unused, 8 bytes spare

#ifndef MY_ALLOC_LEAKCHECK_HEAPLOG_FORMAT_H_
#define MY_ALLOC_LEAKCHECK_HEAPLOG_FORMAT_H_

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HEAPLOG_MAGIC UINT64_C(0x676f6c706165688a)  // 0x8a, then "heaplog".

#define HEAPLOG_HEADER_BYTES_MIN 4096u
#define HEAPLOG_HEADER_BYTES_MAX 65536u
#define HEAPLOG_CHUNK_BYTES 65536u
// Never holds a record, so that a file can be extended by writing a zero there
// without a look at whether the chunk is already in use.
#define HEAPLOG_CHUNK_SPARE_BYTES 8u
#define HEAPLOG_LANES_MAX 65536u

// At offset 0 of the file.
typedef struct heaplog_file_header {
  uint64_t magic;
  uint16_t version_major;
  uint16_t version_minor;
  uint32_t header_bytes;  // Offset of chunk 0; a power of two.
  uint32_t chunk_bytes;
  uint32_t page_bytes;
  uint64_t pid;
  uint64_t start_monotonic_ns;
  uint64_t start_unix_ns;
  uint64_t reserved;   // 0.
  uint32_t reserved2;  // 0.
  uint32_t crc;        // CRC-32C of all bytes before it.
  // The two words that change: a count and, in the upper half, its complement.
  uint64_t chunk_count;
  uint64_t lost_count;
} heaplog_file_header_t;

static_assert(sizeof(heaplog_file_header_t) == 80, "");
static_assert(offsetof(heaplog_file_header_t, crc) == 60, "");
static_assert(offsetof(heaplog_file_header_t, chunk_count) == 64, "");

// At the beginning of each chunk. A chunk not begun is all zeros.
typedef struct heaplog_chunk_header {
  // Bits 0-23: payload bytes; 24-31: HEAPLOG_COMMIT_TAG; 32-63: CRC-32C of the
  // bytes from `index` to before `header_crc` and of that much payload.
  uint64_t commit;
  uint32_t index;  // Of this chunk in the file.
  uint32_t lane;
  uint32_t sequence;  // Of this chunk in its lane.
  uint32_t reserved;  // 0.
  // No event in a chunk of greater index is earlier than this.
  uint64_t horizon_ns;
  // No event in this chunk is earlier, and the first time delta counts from it.
  uint64_t base_ns;
  uint64_t reserved2[2];  // 0.
  uint32_t reserved3;     // 0.
  // CRC-32C of the bytes from `index` to here: what this header says can be
  // believed when the payload is damaged.
  uint32_t header_crc;
} heaplog_chunk_header_t;

#define HEAPLOG_CHUNK_CRC_OFFSET offsetof(heaplog_chunk_header_t, index)
#define HEAPLOG_CHUNK_CRC_BYTES \
  (offsetof(heaplog_chunk_header_t, header_crc) - HEAPLOG_CHUNK_CRC_OFFSET)

static_assert(sizeof(heaplog_chunk_header_t) == 64, "");
static_assert(offsetof(heaplog_chunk_header_t, commit) == 0, "");
static_assert(offsetof(heaplog_chunk_header_t, horizon_ns) == 24, "");
static_assert(offsetof(heaplog_chunk_header_t, header_crc) == 60, "");

#define HEAPLOG_PAYLOAD_BYTES_MAX                                   \
  (HEAPLOG_CHUNK_BYTES - (uint32_t)sizeof(heaplog_chunk_header_t) - \
   HEAPLOG_CHUNK_SPARE_BYTES)

#define HEAPLOG_COMMIT_TAG UINT32_C(0xc3)
#define HEAPLOG_COMMIT_LENGTH_MASK UINT32_C(0xffffff)

static_assert(HEAPLOG_CHUNK_BYTES <= HEAPLOG_COMMIT_LENGTH_MASK, "");
static_assert(HEAPLOG_CHUNK_BYTES % HEAPLOG_HEADER_BYTES_MAX == 0,
              "chunks stay aligned to any page size");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "the structs are read and written as they lie in memory");

// Records. A first byte below 0x80 is a framed record: type, varint length of
// the rest, the rest. Readers skip unknown types and unknown trailing bytes.
enum {
  HEAPLOG_RECORD_THREAD = 0x01,
  HEAPLOG_RECORD_THREAD_END = 0x02,
  HEAPLOG_RECORD_STACK = 0x03,
  HEAPLOG_RECORD_MODULE_LOAD = 0x04,
  HEAPLOG_RECORD_MODULE_UNLOAD = 0x05,
  HEAPLOG_RECORD_MAP = 0x06,
  HEAPLOG_RECORD_UNMAP = 0x07,
  HEAPLOG_RECORD_SAMPLE = 0x08,
  HEAPLOG_RECORD_PROCESS = 0x09,
  HEAPLOG_RECORD_END = 0x0a,
  HEAPLOG_RECORD_LOST = 0x0b,
};

// From 0x80 it is a compact event: 0x80 | kind << 5 | flags.
enum {
  HEAPLOG_COMPACT = 0x80,
  HEAPLOG_COMPACT_KIND_SHIFT = 5,
  HEAPLOG_COMPACT_ALLOC = 0,
  HEAPLOG_COMPACT_FREE = 1,
  HEAPLOG_COMPACT_RESIZE = 2,
  // The address delta counts units of 16 bytes.
  HEAPLOG_COMPACT_UNITS = 0x01,
  // A stack id follows; without: ALLOC and RESIZE have the previous one.
  HEAPLOG_COMPACT_STACK = 0x02,
  // Size follows; without: it and the slack are the previous ones.
  HEAPLOG_COMPACT_SIZE = 0x04,
  // Slack (usable minus requested) follows; without but with a size: 0.
  HEAPLOG_COMPACT_SLACK = 0x08,
  HEAPLOG_COMPACT_RESERVED = 0x10,  // 0.
};

#define HEAPLOG_ADDRESS_UNIT_BYTES 16u
#define HEAPLOG_VARINT_BYTES_MAX 10u
// Tag and five varints.
#define HEAPLOG_COMPACT_BYTES_MAX (1u + 5u * HEAPLOG_VARINT_BYTES_MAX)
// Of the body of a framed record.
#define HEAPLOG_BODY_BYTES_MAX (HEAPLOG_PAYLOAD_BYTES_MAX - 256u)

static inline uint64_t heaplog_commit_word(uint32_t payload_bytes,
                                           uint32_t crc) {
  return (uint64_t)crc << 32 | HEAPLOG_COMMIT_TAG << 24 | payload_bytes;
}

static inline uint64_t heaplog_counter_word(uint32_t count) {
  return (uint64_t)~count << 32 | count;
}

// Small magnitudes of either sign become small numbers: 0, -1, 1, -2, ...
// as 0, 1, 2, 3, ... The difference wraps, so any two values have one.
static inline uint64_t heaplog_zigzag(uint64_t difference) {
  return difference << 1 ^ (0 - (difference >> 63));
}

static inline uint64_t heaplog_unzigzag(uint64_t value) {
  return value >> 1 ^ (0 - (value & 1));
}

// Writes 7 bits a byte, lowest first; all but the last have their top bit set.
static inline unsigned char *heaplog_varint_put(unsigned char *bytes,
                                                uint64_t value) {
  while (value >= 0x80) {
    *bytes++ = (unsigned char)(value | 0x80);
    value >>= 7;
  }
  *bytes++ = (unsigned char)value;
  return bytes;
}

// Reads up to HEAPLOG_VARINT_BYTES_MAX bytes, which must be readable. Returns
// the byte after the varint, or NULL when it is longer or beyond 64 bits.
static inline const unsigned char *heaplog_varint_get(
    const unsigned char *bytes, uint64_t *out_value) {
  uint64_t value = *bytes++;
  if (__builtin_expect(value < 0x80, 1)) {
    *out_value = value;
    return bytes;
  }
  value &= 0x7f;
  for (unsigned int shift = 7; shift <= 63; shift += 7) {
    uint64_t byte = *bytes++;
    value |= (byte & 0x7f) << shift;
    if (byte < 0x80) {
      *out_value = value;
      return shift == 63 && byte > 1 ? NULL : bytes;
    }
  }
  return NULL;
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_HEAPLOG_FORMAT_H_
