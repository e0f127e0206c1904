// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Bytes from the file, each verified before anybody sees it.
//
// The file is read, never mapped: it may be cut while we read, and a mapping
// would then raise SIGBUS. It may also grow, being the log of a running
// program: a commit word vouches only for bytes that will not change any more,
// so the word is read first and the payload after it.
//
// Sizes in headers are compared with constants and with what pread returned,
// never used before.

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "leakcheck/crc32c.h"
#include "leakcheck/heaplog_reader_internal.h"

static const heaplog_failure_t kNoFailure = {.code = HEAPLOG_OK};

static heaplog_failure_t failure(heaplog_error_code_t code, int status,
                                 uint64_t byte_offset, const char *text) {
  return (heaplog_failure_t){
      .code = code, .status = status, .byte_offset = byte_offset, .text = text};
}

static heaplog_failure_t damage(heaplog_error_code_t code, uint64_t byte_offset,
                                const char *text) {
  return failure(code, -EPROTO, byte_offset, text);
}

// Reads up to `size_bytes`; less at the end of the file. -errno on failure.
static int64_t read_at(int descriptor, void *bytes, size_t size_bytes,
                       uint64_t offset) {
  size_t done = 0;
  while (done < size_bytes) {
    ssize_t count = pread(descriptor, (unsigned char *)bytes + done,
                          size_bytes - done, (off_t)(offset + done));
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      return -errno;
    }
    if (count == 0) {
      break;
    }
    done += (size_t)count;
  }
  return (int64_t)done;
}

// The file ends before `offset`, where something should be.
static heaplog_failure_t truncated(const heaplog_file_t *file, uint64_t offset,
                                   const char *text) {
  return damage(HEAPLOG_ERROR_TRUNCATED,
                offset < file->size_bytes ? offset : file->size_bytes, text);
}

static bool is_counter(uint64_t word) {
  return word == heaplog_counter_word((uint32_t)word);
}

static heaplog_failure_t verify_header(const heaplog_file_header_t *header) {
  if (header->version_major != HEAPLOG_VERSION_MAJOR) {
    return failure(HEAPLOG_ERROR_VERSION, -EPROTONOSUPPORT,
                   offsetof(heaplog_file_header_t, version_major),
                   "a heaplog of another major version");
  }
  uint32_t crc = heaplog_crc32c_value(
      heaplog_crc32c_extend_portable(HEAPLOG_CRC32C_INITIAL_STATE, header,
                                     offsetof(heaplog_file_header_t, crc)));
  if (crc != header->crc) {
    return damage(HEAPLOG_ERROR_HEADER, offsetof(heaplog_file_header_t, crc),
                  "the file header's checksum is wrong");
  }
  uint32_t header_bytes = header->header_bytes;
  if (header_bytes < HEAPLOG_HEADER_BYTES_MIN ||
      header_bytes > HEAPLOG_HEADER_BYTES_MAX ||
      (header_bytes & (header_bytes - 1)) != 0) {
    return damage(HEAPLOG_ERROR_HEADER,
                  offsetof(heaplog_file_header_t, header_bytes),
                  "the header size is impossible");
  }
  if (header->chunk_bytes != HEAPLOG_CHUNK_BYTES) {
    return damage(HEAPLOG_ERROR_HEADER,
                  offsetof(heaplog_file_header_t, chunk_bytes),
                  "the chunk size is impossible");
  }
  if (!is_counter(header->chunk_count)) {
    return damage(HEAPLOG_ERROR_HEADER,
                  offsetof(heaplog_file_header_t, chunk_count),
                  "the chunk count contradicts its complement");
  }
  if (!is_counter(header->lost_count)) {
    return damage(HEAPLOG_ERROR_HEADER,
                  offsetof(heaplog_file_header_t, lost_count),
                  "the count of lost events contradicts its complement");
  }
  return kNoFailure;
}

heaplog_failure_t heaplog_file_read_header(heaplog_file_t *file) {
  struct stat stat;
  if (fstat(file->descriptor, &stat) != 0) {
    return failure(HEAPLOG_ERROR_SYSTEM, -errno, 0, "fstat failed");
  }
  if (!S_ISREG(stat.st_mode)) {
    return failure(HEAPLOG_ERROR_NOT_A_LOG, -EINVAL, 0, "not a regular file");
  }
  heaplog_file_header_t header = {.magic = 0};
  int64_t count = read_at(file->descriptor, &header, sizeof(header), 0);
  if (count < 0) {
    return failure(HEAPLOG_ERROR_SYSTEM, (int)count, 0, "pread failed");
  }
  if ((uint64_t)count < sizeof(header.magic) || header.magic != HEAPLOG_MAGIC) {
    return failure(HEAPLOG_ERROR_NOT_A_LOG, -EINVAL, 0,
                   count == 0 ? "the file is empty" : "not a heaplog");
  }
  if ((uint64_t)count < sizeof(header)) {
    return damage(HEAPLOG_ERROR_TRUNCATED, (uint64_t)count,
                  "the file ends in its header");
  }
  heaplog_failure_t found = verify_header(&header);
  if (found.code == HEAPLOG_OK) {
    file->header = header;
    file->chunk_count = (uint32_t)header.chunk_count;
    file->size_bytes = (uint64_t)stat.st_size;
  }
  return found;
}

heaplog_failure_t heaplog_file_open(heaplog_file_t *file, const char *path) {
  *file = (heaplog_file_t){.hardware_crc = heaplog_crc32c_has_hardware()};
  // Non-blocking: opening a FIFO must not wait for its writer.
  file->descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file->descriptor < 0) {
    return failure(HEAPLOG_ERROR_SYSTEM, -errno, 0, "open failed");
  }
  heaplog_failure_t found = heaplog_file_read_header(file);
  if (found.code != HEAPLOG_OK) {
    close(file->descriptor);
  }
  return found;
}

void heaplog_file_close(heaplog_file_t *file) {
  close(file->descriptor);
}

uint64_t heaplog_file_chunk_offset(const heaplog_file_t *file, uint32_t index) {
  return file->header.header_bytes + (uint64_t)index * HEAPLOG_CHUNK_BYTES;
}

static heaplog_failure_t verify_chunk_header(
    const heaplog_file_t *file, uint32_t index,
    const heaplog_chunk_header_t *header) {
  uint64_t offset = heaplog_file_chunk_offset(file, index);
  uint32_t crc = heaplog_crc32c_value(heaplog_crc32c_extend(
      file->hardware_crc, HEAPLOG_CRC32C_INITIAL_STATE,
      (const unsigned char *)header + HEAPLOG_CHUNK_CRC_OFFSET,
      HEAPLOG_CHUNK_CRC_BYTES));
  if (crc != header->header_crc) {
    return damage(HEAPLOG_ERROR_CHECKSUM, offset,
                  "a chunk header's checksum is wrong");
  }
  if (header->index != index) {
    return damage(HEAPLOG_ERROR_CHUNK,
                  offset + offsetof(heaplog_chunk_header_t, index),
                  "a chunk is in the wrong place");
  }
  if (header->lane >= HEAPLOG_LANES_MAX) {
    return damage(HEAPLOG_ERROR_CHUNK,
                  offset + offsetof(heaplog_chunk_header_t, lane),
                  "a chunk's lane number is too great");
  }
  return kNoFailure;
}

heaplog_failure_t heaplog_file_read_chunk_header(
    const heaplog_file_t *file, uint32_t index,
    heaplog_chunk_header_t *out_header) {
  uint64_t offset = heaplog_file_chunk_offset(file, index);
  int64_t count =
      read_at(file->descriptor, out_header, sizeof(*out_header), offset);
  if (count < 0) {
    return failure(HEAPLOG_ERROR_SYSTEM, (int)count, offset, "pread failed");
  }
  if ((uint64_t)count < sizeof(*out_header)) {
    return truncated(file, offset + (uint64_t)count,
                     "the file ends before its last chunk");
  }
  if (out_header->commit == 0) {
    return kNoFailure;
  }
  return verify_chunk_header(file, index, out_header);
}

// Whether the commit word vouches for the header in `bytes` and the payload
// behind it.
static bool verify_payload(const heaplog_file_t *file, uint64_t commit,
                           const unsigned char *bytes, uint32_t payload_bytes) {
  uint32_t state = heaplog_crc32c_extend(
      file->hardware_crc, HEAPLOG_CRC32C_INITIAL_STATE,
      bytes + HEAPLOG_CHUNK_CRC_OFFSET, HEAPLOG_CHUNK_CRC_BYTES);
  state = heaplog_crc32c_extend(file->hardware_crc, state,
                                bytes + sizeof(heaplog_chunk_header_t),
                                payload_bytes);
  // The tag is in the comparison.
  return heaplog_commit_word(payload_bytes, heaplog_crc32c_value(state)) ==
         commit;
}

heaplog_failure_t heaplog_file_read_chunk(const heaplog_file_t *file,
                                          uint32_t index, unsigned char *bytes,
                                          heaplog_chunk_header_t *out_header,
                                          uint32_t *out_payload_bytes) {
  const uint64_t offset = heaplog_file_chunk_offset(file, index);
  const size_t header_bytes = sizeof(*out_header);
  heaplog_failure_t found =
      heaplog_file_read_chunk_header(file, index, out_header);
  if (found.code != HEAPLOG_OK || out_header->commit == 0) {
    *out_header = (heaplog_chunk_header_t){.commit = 0};
    return found;
  }
  // The commit word was read before the payload: it is the older.
  memcpy(bytes, out_header, header_bytes);
  uint32_t payload_bytes =
      (uint32_t)out_header->commit & HEAPLOG_COMMIT_LENGTH_MASK;
  if (payload_bytes > HEAPLOG_PAYLOAD_BYTES_MAX) {
    return damage(HEAPLOG_ERROR_CHECKSUM, offset,
                  "a chunk's commit word is impossible");
  }
  int64_t count = read_at(file->descriptor, bytes + header_bytes, payload_bytes,
                          offset + header_bytes);
  if (count < 0) {
    return failure(HEAPLOG_ERROR_SYSTEM, (int)count, offset, "pread failed");
  }
  if (count < payload_bytes) {
    return truncated(file, offset + header_bytes + (uint64_t)count,
                     "the file ends inside a chunk");
  }
  if (!verify_payload(file, out_header->commit, bytes, payload_bytes)) {
    return damage(HEAPLOG_ERROR_CHECKSUM, offset,
                  "a chunk's checksum is wrong");
  }
  *out_payload_bytes = payload_bytes;
  return kNoFailure;
}
