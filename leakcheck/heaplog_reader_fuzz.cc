// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Fuzzes the reader. Its input's first byte says what the rest is:
//   even: the bytes of a file;
//   odd:  chunks, each of
//           1 byte   lane (low 3 bits), sequence minus the right one (next 2)
//           2 bytes  base_ns minus the base of the chunk before
//           1 byte   base_ns minus horizon_ns
//           2 bytes  payload length (cut to what is left), then the payload
//         which become a file with all checksums right, so that the fuzzer
//         gets behind them.
//
// Properties: reading ends; events are in order and in range; another batch
// size after a rewind gives the same; and what a file cut somewhere gives is
// the beginning of what the whole gives.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "leakcheck/heaplog_builder.h"
#include "leakcheck/heaplog_reader.h"

namespace {

#define CHECK(condition) \
  do {                   \
    if (!(condition)) {  \
      abort();           \
    }                    \
  } while (0)

// Takes little-endian numbers off the front of the input.
class Input {
 public:
  Input(const uint8_t *data, size_t size) : data_(data), size_(size) {
  }

  bool empty() const {
    return size_ == 0;
  }

  uint64_t Number(size_t bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes && size_ > 0; i++, data_++, size_--) {
      value |= uint64_t{*data_} << 8 * i;
    }
    return value;
  }

  std::string String(size_t bytes) {
    bytes = std::min(bytes, size_);
    std::string string(reinterpret_cast<const char *>(data_), bytes);
    data_ += bytes;
    size_ -= bytes;
    return string;
  }

 private:
  const uint8_t *data_;
  size_t size_;
};

std::string BuildChunks(Input *input) {
  heaplog_test::LogBuilder builder;
  uint32_t sequences[8] = {};
  uint64_t base_ns = 0;
  for (int i = 0; i < 64 && !input->empty(); i++) {
    uint64_t lane = input->Number(1);
    base_ns += input->Number(2);
    uint64_t back_ns = input->Number(1);
    std::string payload = input->String(
        std::min<uint64_t>(input->Number(2), HEAPLOG_PAYLOAD_BYTES_MAX));
    uint32_t sequence = sequences[lane & 7]++;
    heaplog_chunk_header_t &header =
        builder.Chunk(lane & 7, sequence + static_cast<uint32_t>(lane >> 3 & 3),
                      base_ns, heaplog_test::Bytes().Append(payload));
    header.horizon_ns = base_ns - std::min(back_ns, base_ns);
  }
  return builder.Build();
}

void CheckEvent(const heaplog_reader_t *reader, const heaplog_event_t &event) {
  uint64_t end;
  CHECK(event.kind >= HEAPLOG_ALLOC && event.kind <= HEAPLOG_END);
  CHECK(event.thread_index < heaplog_reader_thread_count(reader));
  CHECK(event.stack_id <= HEAPLOG_STACK_ID_MAX);
  CHECK(event.reserved == 0);
  if (event.kind == HEAPLOG_ALLOC || event.kind == HEAPLOG_RESIZE) {
    CHECK(event.usable_bytes >= event.size_bytes);
    CHECK(!__builtin_add_overflow(event.address, event.usable_bytes, &end));
  } else {
    CHECK(event.usable_bytes == 0);
    CHECK(!__builtin_add_overflow(event.address, event.size_bytes, &end));
  }
}

void CheckDefinitions(const heaplog_reader_t *reader) {
  uint64_t ips[64];
  uint32_t end = heaplog_reader_stack_id_end(reader);
  CHECK(end <= HEAPLOG_STACK_ID_MAX + 1);
  for (uint32_t id = end < 1000 ? 0 : end - 1000; id < end; id++) {
    uint64_t ip = 0;
    uint32_t parent = 0;
    size_t frames = heaplog_reader_stack(reader, id, ips, 64);
    bool known = heaplog_reader_stack_node(reader, id, &ip, &parent);
    CHECK(known == (frames > 0));
    CHECK(!known || (parent < id && ips[0] == ip));
  }
  heaplog_module_t module;
  for (size_t i = 0; heaplog_reader_module(reader, i, &module); i++) {
    CHECK(std::string(module.path).size() <= HEAPLOG_PATH_BYTES_MAX);
    CHECK(module.start_address <= module.end_address);
    CHECK(module.build_id_bytes <= HEAPLOG_BUILD_ID_BYTES_MAX);
  }
  heaplog_thread_t thread;
  for (size_t i = 0; heaplog_reader_thread(reader, i, &thread); i++) {
    CHECK(thread.name[HEAPLOG_THREAD_NAME_BYTES - 1] == '\0');
  }
  const heaplog_info_t *info = heaplog_reader_info(reader);
  CHECK(info->command_line[info->command_line_bytes] == '\0');
}

// Reads to the end. Returns a running digest, one entry an event.
std::vector<uint64_t> ReadAll(heaplog_reader_t *reader, size_t batch) {
  std::vector<uint64_t> digests = {0};
  std::vector<heaplog_event_t> events(batch);
  uint64_t time_ns = 0;
  size_t count;
  while ((count = heaplog_reader_read(reader, events.data(), batch)) > 0) {
    for (size_t i = 0; i < count; i++) {
      const heaplog_event_t &event = events[i];
      CheckEvent(reader, event);
      CHECK(time_ns <= event.time_ns);
      time_ns = event.time_ns;
      uint64_t digest = digests.back();
      for (uint64_t word :
           {event.time_ns, event.address, event.size_bytes, event.usable_bytes,
            uint64_t{event.stack_id}, uint64_t{event.thread_index},
            uint64_t{event.kind}}) {
        digest = (digest ^ word) * 0x9e3779b97f4a7c15u;
        digest ^= digest >> 29;
      }
      digests.push_back(digest);
    }
  }
  heaplog_error_t error;
  int status = heaplog_reader_status(reader, &error);
  CHECK(status == error.status);
  CHECK((status == 0) == (error.code == HEAPLOG_OK));
  CHECK((status == 0) == (error.text[0] == '\0'));
  CheckDefinitions(reader);
  return digests;
}

class MemoryFile {
 public:
  MemoryFile()
      : descriptor_(memfd_create("fuzz", MFD_CLOEXEC)),
        path_("/proc/self/fd/" + std::to_string(descriptor_)) {
    CHECK(descriptor_ >= 0);
  }

  void Set(const std::string &bytes) {
    Cut(0);
    Cut(bytes.size());
    // Most of a file of chunks is zeros, and holes are quicker.
    static const std::string *zeros = new std::string(kBlockBytes, '\0');
    for (size_t i = 0; i < bytes.size(); i += kBlockBytes) {
      size_t size = std::min(kBlockBytes, bytes.size() - i);
      if (bytes.compare(i, size, *zeros, 0, size) != 0) {
        CHECK(pwrite(descriptor_, &bytes[i], size, static_cast<off_t>(i)) ==
              static_cast<ssize_t>(size));
      }
    }
  }

  void Cut(size_t size) {
    CHECK(ftruncate(descriptor_, static_cast<off_t>(size)) == 0);
  }

  const char *path() const {
    return path_.c_str();
  }

 private:
  static constexpr size_t kBlockBytes = 4096;

  int descriptor_;
  std::string path_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static MemoryFile *file = new MemoryFile;
  Input input(data, size);
  bool chunks = input.Number(1) % 2 == 1;
  std::string bytes = chunks ? BuildChunks(&input) : input.String(size);
  file->Set(bytes);
  heaplog_reader_t *reader = nullptr;
  heaplog_error_t error;
  if (heaplog_reader_open(file->path(), &reader, &error) != 0) {
    CHECK(error.code != HEAPLOG_OK && error.text[0] != '\0');
    return 0;
  }
  std::vector<uint64_t> whole = ReadAll(reader, 64);
  CHECK(heaplog_reader_rewind(reader) == 0);
  CHECK(ReadAll(reader, 1) == whole);
  // The header stays, so that there is something to read.
  size_t least = std::min<size_t>(bytes.size(), 4096);
  file->Cut(least + size * 7919 % (bytes.size() - least + 1));
  CHECK(heaplog_reader_rewind(reader) == 0);
  std::vector<uint64_t> cut = ReadAll(reader, 7);
  size_t common = std::min(cut.size(), whole.size());
  CHECK(std::equal(cut.begin(), cut.begin() + static_cast<ptrdiff_t>(common),
                   whole.begin()));
  heaplog_reader_close(reader);
  return 0;
}
