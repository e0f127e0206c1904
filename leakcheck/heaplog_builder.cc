// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/heaplog_builder.h"

#include <cstring>

#include "leakcheck/crc32c.h"
#include "leakcheck/heaplog.h"

namespace heaplog_test {
namespace {

uint32_t Crc(const void *data, size_t size) {
  return heaplog_crc32c_value(
      heaplog_crc32c_extend_portable(HEAPLOG_CRC32C_INITIAL_STATE, data, size));
}

}  // namespace

Bytes &Bytes::Byte(unsigned int value) {
  bytes_.push_back(static_cast<char>(value));
  return *this;
}

Bytes &Bytes::Varint(uint64_t value) {
  unsigned char buffer[HEAPLOG_VARINT_BYTES_MAX];
  unsigned char *end = heaplog_varint_put(buffer, value);
  bytes_.append(reinterpret_cast<char *>(buffer), end - buffer);
  return *this;
}

Bytes &Bytes::Signed(int64_t value) {
  return Varint(heaplog_zigzag(static_cast<uint64_t>(value)));
}

Bytes &Bytes::String(const std::string &text) {
  Varint(text.size());
  return Append(text);
}

Bytes &Bytes::Append(const std::string &bytes) {
  bytes_ += bytes;
  return *this;
}

Bytes &Bytes::Framed(unsigned int type, const Bytes &body) {
  return Byte(type).String(body.str());
}

Bytes &Bytes::Thread(uint32_t id) {
  return Framed(HEAPLOG_RECORD_THREAD, Bytes()
                                           .Varint(id)
                                           .Varint(uint64_t{id} + 100)
                                           .Varint(0)
                                           .String(std::to_string(id)));
}

Bytes &Bytes::Free(uint64_t time_delta, int64_t address_delta) {
  return Byte(HEAPLOG_COMPACT | HEAPLOG_COMPACT_FREE
                                    << HEAPLOG_COMPACT_KIND_SHIFT)
      .Varint(time_delta)
      .Signed(address_delta);
}

LogBuilder::LogBuilder() : header_() {
  header_.magic = HEAPLOG_MAGIC;
  header_.version_major = HEAPLOG_VERSION_MAJOR;
  header_.version_minor = HEAPLOG_VERSION_MINOR;
  header_.header_bytes = HEAPLOG_HEADER_BYTES_MIN;
  header_.chunk_bytes = HEAPLOG_CHUNK_BYTES;
  header_.page_bytes = 4096;
  header_.pid = 4711;
  header_.start_monotonic_ns = kStartNs;
  header_.chunk_count = heaplog_counter_word(0);
  header_.lost_count = heaplog_counter_word(0);
}

heaplog_chunk_header_t &LogBuilder::Chunk(uint32_t lane, uint32_t sequence,
                                          uint64_t base_ns,
                                          const Bytes &payload) {
  ChunkParts parts = {};
  parts.header.index = static_cast<uint32_t>(chunks_.size());
  parts.header.lane = lane;
  parts.header.sequence = sequence;
  parts.header.horizon_ns = base_ns;
  parts.header.base_ns = base_ns;
  parts.payload = payload.str();
  chunks_.reserve(1000);  // References stay good.
  chunks_.push_back(parts);
  header_.chunk_count =
      heaplog_counter_word(static_cast<uint32_t>(chunks_.size()));
  return chunks_.back().header;
}

std::string LogBuilder::Build() const {
  heaplog_file_header_t file = header_;
  file.crc = Crc(&file, offsetof(heaplog_file_header_t, crc));
  std::string bytes(HEAPLOG_HEADER_BYTES_MIN, '\0');
  std::memcpy(&bytes[0], &file, sizeof(file));
  for (const ChunkParts &parts : chunks_) {
    std::string chunk(sizeof(parts.header), '\0');
    chunk += parts.payload;
    heaplog_chunk_header_t header = parts.header;
    std::memcpy(&chunk[0], &header, sizeof(header));
    header.header_crc =
        Crc(&chunk[HEAPLOG_CHUNK_CRC_OFFSET], HEAPLOG_CHUNK_CRC_BYTES);
    std::string covered =
        chunk.substr(HEAPLOG_CHUNK_CRC_OFFSET, HEAPLOG_CHUNK_CRC_BYTES) +
        parts.payload;
    header.commit =
        heaplog_commit_word(static_cast<uint32_t>(parts.payload.size()),
                            Crc(covered.data(), covered.size()));
    std::memcpy(&chunk[0], &header, sizeof(header));
    chunk.resize(HEAPLOG_CHUNK_BYTES);
    bytes += chunk;
  }
  return bytes;
}

}  // namespace heaplog_test
