// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The reader on files built byte by byte: file header, chunks, order.
// heaplog_decode_test.cc has the records.

#include "leakcheck/heaplog_reader.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_reader_internal.h"
#include "leakcheck/heaplog_test_util.h"

namespace {

using heaplog_test::Bytes;
using heaplog_test::kStartNs;
using heaplog_test::Log;
using heaplog_test::LogBuilder;
using heaplog_test::Options;
using heaplog_test::ReadBytes;
using heaplog_test::ReadFile;
using heaplog_test::ReadLog;
using heaplog_test::TempPath;
using heaplog_test::WriteFile;

constexpr uint64_t kChunk0 = HEAPLOG_HEADER_BYTES_MIN;
constexpr uint64_t kChunk1 = kChunk0 + HEAPLOG_CHUNK_BYTES;
constexpr uint64_t kChunk2 = kChunk1 + HEAPLOG_CHUNK_BYTES;
constexpr uint64_t kPayload = sizeof(heaplog_chunk_header_t);

// A payload with frees of `address`, at these times after `base`.
Bytes Frees(uint32_t thread, uint64_t base, std::vector<uint64_t> times,
            int64_t address = 1) {
  Bytes payload;
  payload.Thread(thread);
  for (uint64_t time : times) {
    payload.Free(time - base, address);
    base = time;
    address = 0;
  }
  return payload;
}

std::vector<uint64_t> Times(const Log &log) {
  std::vector<uint64_t> times;
  for (const heaplog_event_t &event : log.events) {
    times.push_back(event.time_ns);
  }
  return times;
}

// Two lanes: lane 0 has chunks 0 and 2, lane 1 has chunk 1.
LogBuilder TwoLanes() {
  LogBuilder builder;
  builder.Chunk(0, 0, 0, Frees(0, 0, {10, 30, 50}));
  builder.Chunk(1, 0, 20, Frees(1, 20, {25, 60, 90}));
  builder.Chunk(0, 1, 55, Frees(0, 55, {70, 80, 100}));
  return builder;
}

using U64s = std::vector<uint64_t>;

TEST(HeaplogReaderTest, MissingFileIsASystemError) {
  Log log = ReadLog("/nonexistent/x.heaplog");
  EXPECT_EQ(log.open_status, -ENOENT);
  EXPECT_EQ(log.error.code, HEAPLOG_ERROR_SYSTEM);
  EXPECT_STREQ(log.error.text, "open failed: No such file or directory");
}

TEST(HeaplogReaderTest, WhatIsNoRegularFileIsNotALog) {
  EXPECT_EQ(ReadLog("/tmp").error.code, HEAPLOG_ERROR_NOT_A_LOG);
  EXPECT_EQ(ReadLog("/dev/zero").error.code, HEAPLOG_ERROR_NOT_A_LOG);
  std::string fifo = TempPath("fifo");
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_EQ(ReadLog(fifo).error.code, HEAPLOG_ERROR_NOT_A_LOG);
  unlink(fifo.c_str());
}

TEST(HeaplogReaderTest, OutErrorMayBeNull) {
  heaplog_reader_t *reader = nullptr;
  EXPECT_EQ(heaplog_reader_open("/nonexistent/x", &reader, nullptr), -ENOENT);
  EXPECT_EQ(reader, nullptr);
  heaplog_reader_close(nullptr);
}

TEST(HeaplogReaderTest, FilesShorterThanTheHeaderAreRefused) {
  std::string bytes = LogBuilder().Build();
  for (size_t size = 0; size < sizeof(heaplog_file_header_t); size++) {
    Log log = ReadBytes(bytes.substr(0, size));
    EXPECT_LT(log.open_status, 0);
    if (size < 8) {
      EXPECT_EQ(log.error.code, HEAPLOG_ERROR_NOT_A_LOG) << size;
    } else {
      EXPECT_EQ(log.error.code, HEAPLOG_ERROR_TRUNCATED) << size;
      EXPECT_EQ(log.error.byte_offset, size);
    }
  }
}

TEST(HeaplogReaderTest, EmptyLogHasNoEvents) {
  Log log = ReadBytes(LogBuilder().Build());
  EXPECT_EQ(log.open_status, 0);
  EXPECT_EQ(log.status, 0);
  EXPECT_TRUE(log.events.empty());
}

struct HeaderCase {
  const char *name;
  std::function<void(heaplog_file_header_t *)> change;
  heaplog_error_code_t code;
  uint64_t byte_offset;
};

TEST(HeaplogReaderTest, EveryHeaderFieldIsChecked) {
  const HeaderCase cases[] = {
      {"magic", [](auto *h) { h->magic ^= 1; }, HEAPLOG_ERROR_NOT_A_LOG, 0},
      {"older", [](auto *h) { h->version_major = 0; }, HEAPLOG_ERROR_VERSION,
       8},
      {"newer", [](auto *h) { h->version_major = 2; }, HEAPLOG_ERROR_VERSION,
       8},
      {"minor", [](auto *h) { h->version_minor = 9; }, HEAPLOG_OK, 0},
      {"header 0", [](auto *h) { h->header_bytes = 0; }, HEAPLOG_ERROR_HEADER,
       12},
      {"header small", [](auto *h) { h->header_bytes = 2048; },
       HEAPLOG_ERROR_HEADER, 12},
      {"header odd", [](auto *h) { h->header_bytes = 4097; },
       HEAPLOG_ERROR_HEADER, 12},
      {"header large", [](auto *h) { h->header_bytes = 131072; },
       HEAPLOG_ERROR_HEADER, 12},
      {"chunk 0", [](auto *h) { h->chunk_bytes = 0; }, HEAPLOG_ERROR_HEADER,
       16},
      {"chunk small", [](auto *h) { h->chunk_bytes = 4096; },
       HEAPLOG_ERROR_HEADER, 16},
      {"chunk large", [](auto *h) { h->chunk_bytes = 1 << 30; },
       HEAPLOG_ERROR_HEADER, 16},
      {"count", [](auto *h) { h->chunk_count = 1; }, HEAPLOG_ERROR_HEADER, 64},
      {"lost", [](auto *h) { h->lost_count ^= uint64_t{1} << 63; },
       HEAPLOG_ERROR_HEADER, 72},
  };
  for (const HeaderCase &test : cases) {
    LogBuilder builder;
    test.change(&builder.header());
    Log log = ReadBytes(builder.Build());
    EXPECT_EQ(log.error.code, test.code) << test.name;
    EXPECT_EQ(log.error.byte_offset, test.byte_offset) << test.name;
  }
}

TEST(HeaplogReaderTest, EveryHeaderBitIsCovered) {
  std::string bytes = TwoLanes().Build();
  for (size_t bit = 0; bit < sizeof(heaplog_file_header_t) * 8; bit++) {
    std::string changed = bytes;
    changed[bit / 8] ^= static_cast<char>(1 << bit % 8);
    EXPECT_LT(ReadBytes(changed).open_status, 0) << bit;
  }
}

TEST(HeaplogReaderTest, InfoComesFromTheHeader) {
  LogBuilder builder;
  builder.header().pid = 42;
  builder.header().start_unix_ns = 43;
  builder.header().lost_count = heaplog_counter_word(44);
  Log log = ReadBytes(builder.Build());
  EXPECT_EQ(log.info.pid, 42u);
  EXPECT_EQ(log.info.start_unix_ns, 43u);
  EXPECT_EQ(log.info.lost_count, 44u);
  EXPECT_EQ(log.info.file_bytes, 4096u);
}

TEST(HeaplogReaderTest, LanesAreMergedByTime) {
  Log log = ReadBytes(TwoLanes().Build());
  EXPECT_EQ(log.status, 0);
  EXPECT_EQ(Times(log), (U64s{10, 25, 30, 50, 60, 70, 80, 90, 100}));
}

// Lane 1's chunk comes late in the file but holds early events.
TEST(HeaplogReaderTest, ChunksFoundLateAreMergedInTime) {
  LogBuilder builder;
  builder.Chunk(0, 0, 0, Frees(0, 0, {10, 400}));
  builder.Chunk(2, 0, 0, Frees(2, 0, {15, 300})).horizon_ns = 0;
  builder.Chunk(1, 0, 5, Frees(1, 5, {12, 350})).horizon_ns = 5;
  EXPECT_EQ(Times(ReadBytes(builder.Build())),
            (U64s{10, 12, 15, 300, 350, 400}));
}

TEST(HeaplogReaderTest, ChunksNotBegunAreSkipped) {
  LogBuilder builder = TwoLanes();
  builder.Chunk(2, 0, 200, Frees(2, 200, {210}));
  std::string bytes = builder.Build();
  // The last: killed before the first commit; its header is half written.
  std::memset(&bytes[kChunk2 + HEAPLOG_CHUNK_BYTES], 0, 8);
  bytes[kChunk2 + HEAPLOG_CHUNK_BYTES + 12] ^= 1;
  Log log = ReadBytes(bytes);
  EXPECT_EQ(log.status, 0);
  EXPECT_EQ(log.events.size(), 9u);
}

struct ChunkCase {
  const char *name;
  std::function<void(heaplog_chunk_header_t *)> change;
  uint64_t byte_offset;  // In chunk 1.
};

TEST(HeaplogReaderTest, EveryChunkHeaderFieldIsChecked) {
  const ChunkCase cases[] = {
      {"index", [](auto *h) { h->index = 2; }, 8},
      {"lane", [](auto *h) { h->lane = HEAPLOG_LANES_MAX; }, 12},
      {"lane max", [](auto *h) { h->lane = ~0u; }, 12},
      {"base before the horizon", [](auto *h) { h->base_ns = 4; }, 32},
      {"base before its own horizon", [](auto *h) { h->horizon_ns = 21; }, 32},
  };
  for (const ChunkCase &test : cases) {
    LogBuilder builder;
    builder.Chunk(0, 0, 5, Frees(0, 5, {10, 30, 50}));
    test.change(&builder.Chunk(1, 0, 20, Frees(1, 20, {25})));
    Log log = ReadBytes(builder.Build());
    EXPECT_EQ(log.error.code, HEAPLOG_ERROR_CHUNK) << test.name;
    EXPECT_EQ(log.error.byte_offset, kChunk1 + test.byte_offset) << test.name;
    EXPECT_EQ(log.status, -EPROTO);
    // Chunk 0 promises nothing beyond time 5.
    EXPECT_TRUE(log.events.empty()) << test.name;
  }
}

TEST(HeaplogReaderTest, DamagedChunkHeaderEndsTheLogAtTheHorizon) {
  LogBuilder builder = TwoLanes();
  std::string bytes = builder.Build();
  for (size_t bit = 64; bit < sizeof(heaplog_chunk_header_t) * 8; bit++) {
    std::string changed = bytes;
    changed[kChunk2 + bit / 8] ^= static_cast<char>(1 << bit % 8);
    Log log = ReadBytes(changed);
    EXPECT_EQ(log.error.code, HEAPLOG_ERROR_CHECKSUM);
    EXPECT_EQ(log.error.byte_offset, kChunk2);
    // Chunk 1 was begun at 20.
    EXPECT_EQ(Times(log), (U64s{10})) << bit;
  }
}

TEST(HeaplogReaderTest, DamagedPayloadEndsTheLogWhereItsChunkBegins) {
  std::string bytes = TwoLanes().Build();
  std::vector<size_t> bits;
  for (size_t bit = 0; bit < 64; bit++) {
    bits.push_back(bit);  // The commit word.
  }
  size_t payload_bytes = Frees(0, 55, {70, 80, 100}).str().size();
  for (size_t bit = 0; bit < payload_bytes * 8; bit++) {
    bits.push_back(kPayload * 8 + bit);
  }
  for (size_t bit : bits) {
    std::string changed = bytes;
    changed[kChunk2 + bit / 8] ^= static_cast<char>(1 << bit % 8);
    Log log = ReadBytes(changed);
    EXPECT_EQ(log.error.code, HEAPLOG_ERROR_CHECKSUM);
    EXPECT_EQ(log.error.byte_offset, kChunk2);
    // Chunk 2 was begun at 55, and says so.
    EXPECT_EQ(Times(log), (U64s{10, 25, 30, 50})) << bit;
  }
}

TEST(HeaplogReaderTest, ChangesInTheUnusedPartOfAChunkAreHarmless) {
  std::string bytes = TwoLanes().Build();
  size_t payload_bytes = Frees(0, 55, {70, 80, 100}).str().size();
  bytes[kChunk2 + kPayload + payload_bytes] = 1;
  bytes[kChunk2 + HEAPLOG_CHUNK_BYTES - 1] = 1;
  bytes[HEAPLOG_HEADER_BYTES_MIN - 1] = 1;
  Log log = ReadBytes(bytes);
  EXPECT_EQ(log.status, 0);
  EXPECT_EQ(log.events.size(), 9u);
}

TEST(HeaplogReaderTest, CutFilesGiveTheBeginning) {
  std::string bytes = TwoLanes().Build();
  size_t used2 = kPayload + Frees(0, 55, {70, 80, 100}).str().size();
  struct {
    size_t size;
    U64s times;
    bool whole;
  } cases[] = {
      {bytes.size() - 1, {10, 25, 30, 50, 60, 70, 80, 90, 100}, true},
      {kChunk2 + used2, {10, 25, 30, 50, 60, 70, 80, 90, 100}, true},
      // Its header says where the chunk begins.
      {kChunk2 + used2 - 1, {10, 25, 30, 50}, false},
      {kChunk2 + kPayload, {10, 25, 30, 50}, false},
      // Not any more: only the one before it does.
      {kChunk2 + kPayload - 1, {10}, false},
      {kChunk2, {10}, false},
      {kChunk1 + kPayload + 3, {10}, false},
      {kChunk1, {}, false},
      {kChunk0 + kPayload + 3, {}, false},
      {kChunk0, {}, false},
      {sizeof(heaplog_file_header_t), {}, false},
  };
  for (const auto &test : cases) {
    Log log = ReadBytes(bytes.substr(0, test.size));
    EXPECT_EQ(Times(log), test.times) << test.size;
    if (test.whole) {
      EXPECT_EQ(log.status, 0) << test.size;
    } else {
      EXPECT_EQ(log.error.code, HEAPLOG_ERROR_TRUNCATED) << test.size;
      EXPECT_EQ(log.error.byte_offset, test.size);
    }
  }
}

TEST(HeaplogReaderTest, HugeChunkCountOfATinyFileIsNotBelieved) {
  LogBuilder builder = TwoLanes();
  builder.header().chunk_count = heaplog_counter_word(~0u);
  Log log = ReadBytes(builder.Build());
  EXPECT_EQ(log.error.code, HEAPLOG_ERROR_TRUNCATED);
  // Up to where chunk 2 was begun.
  EXPECT_EQ(Times(log), (U64s{10, 25, 30, 50}));
}

TEST(HeaplogReaderTest, BytesBehindTheLastChunkAreIgnored) {
  Log log = ReadBytes(TwoLanes().Build() + "whatever");
  EXPECT_EQ(log.status, 0);
  EXPECT_EQ(log.events.size(), 9u);
}

TEST(HeaplogReaderTest, MissingChunkOfALaneIsAnError) {
  LogBuilder builder;
  builder.Chunk(0, 0, 0, Frees(0, 0, {10, 30, 50}));
  builder.Chunk(1, 0, 20, Frees(1, 20, {25, 60, 90}));
  builder.Chunk(0, 2, 55, Frees(0, 55, {70, 80, 100}));
  Log log = ReadBytes(builder.Build());
  EXPECT_EQ(log.error.code, HEAPLOG_ERROR_CHUNK);
  EXPECT_EQ(log.error.byte_offset, kChunk2 + 16);
  // The missing one may have begun right after lane 0's last event.
  EXPECT_EQ(Times(log), (U64s{10, 25, 30, 50}));
}

TEST(HeaplogReaderTest, RepeatedChunkOfALaneIsAnError) {
  LogBuilder builder;
  builder.Chunk(0, 0, 0, Frees(0, 0, {10}));
  builder.Chunk(0, 0, 20, Frees(0, 20, {25}));
  Log log = ReadBytes(builder.Build());
  EXPECT_EQ(log.error.code, HEAPLOG_ERROR_CHUNK);
  EXPECT_EQ(Times(log), (U64s{10}));
}

TEST(HeaplogReaderTest, LaneThatDoesNotBeginWithItsFirstChunkIsAnError) {
  LogBuilder builder;
  builder.Chunk(0, 7, 0, Frees(0, 0, {10}));
  EXPECT_EQ(ReadBytes(builder.Build()).error.code, HEAPLOG_ERROR_CHUNK);
}

TEST(HeaplogReaderTest, LaneWhoseTimeGoesBackIsAnError) {
  LogBuilder builder;
  builder.Chunk(0, 0, 0, Frees(0, 0, {10, 500}));
  builder.Chunk(0, 1, 20, Frees(0, 20, {25})).horizon_ns = 0;
  Log log = ReadBytes(builder.Build());
  EXPECT_EQ(log.error.code, HEAPLOG_ERROR_CHUNK);
  EXPECT_EQ(log.error.byte_offset, kChunk1 + 32);
  EXPECT_EQ(Times(log), (U64s{10, 500}));
}

TEST(HeaplogReaderTest, ManyLanesAreMerged) {
  LogBuilder builder;
  std::vector<uint64_t> expected;
  for (uint32_t lane = 0; lane < 500; lane++) {
    builder.Chunk(lane * 131, 0, lane,
                  Frees(lane, lane, {lane + 1, 10000u - lane}));
    expected.push_back(lane + 1);
    expected.push_back(10000 - lane);
  }
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(Times(ReadBytes(builder.Build())), expected);
}

// A log in memory whose chunks behind those of `builder` are holes; a memfd, as
// other files cannot be that long.
class SparseLog {
 public:
  SparseLog(const LogBuilder &builder, uint32_t chunk_count)
      : descriptor_(memfd_create("sparse", MFD_CLOEXEC)) {
    LogBuilder copy = builder;
    copy.header().chunk_count = heaplog_counter_word(chunk_count);
    std::string bytes = copy.Build();
    EXPECT_EQ(pwrite(descriptor_, bytes.data(), bytes.size(), 0),
              static_cast<ssize_t>(bytes.size()));
    EXPECT_EQ(ftruncate(descriptor_, static_cast<off_t>(Offset(chunk_count))),
              0);
  }
  ~SparseLog() {
    close(descriptor_);
  }

  std::string path() const {
    return "/proc/self/fd/" + std::to_string(descriptor_);
  }
  static uint64_t Offset(uint64_t chunk) {
    return kChunk0 + chunk * HEAPLOG_CHUNK_BYTES;
  }

 private:
  int descriptor_;
};

TEST(HeaplogReaderTest, AsManyChunksAsLanesMayNotHaveBegun) {
  SparseLog sparse(TwoLanes(), 3 + HEAPLOG_LANES_MAX);
  Log log = ReadLog(sparse.path());
  EXPECT_EQ(log.status, 0) << log.error.text;
  EXPECT_EQ(log.events.size(), 9u);
}

TEST(HeaplogReaderTest, MoreChunksNotBegunThanLanesEndTheLog) {
  for (uint32_t count : {3 + HEAPLOG_LANES_MAX + 1, UINT32_MAX}) {
    SparseLog sparse(TwoLanes(), count);
    Log log = ReadLog(sparse.path());
    EXPECT_EQ(log.status, -EPROTO);
    EXPECT_EQ(log.error.code, HEAPLOG_ERROR_LIMIT);
    EXPECT_EQ(log.error.byte_offset, SparseLog::Offset(3 + HEAPLOG_LANES_MAX));
    // What is earlier than the last horizon.
    EXPECT_EQ(Times(log), (U64s{10, 25, 30, 50}));
  }
}

TEST(HeaplogReaderTest, MoreChunksThanCanBeListedAreNoMemory) {
  SparseLog sparse(LogBuilder(), UINT32_MAX);
  heaplog_reader_t *reader = nullptr;
  ASSERT_EQ(heaplog_reader_open(sparse.path().c_str(), &reader, nullptr), 0);
  // As if half of them had been found; the list would double to 2^32.
  reader->frontier = reader->next_chunk_capacity = UINT32_C(1) << 31;
  heaplog_event_t event;
  EXPECT_FALSE(heaplog_reader_next(reader, &event));
  EXPECT_EQ(heaplog_reader_status(reader, nullptr), -ENOMEM);
  // Nothing was allocated, so that nothing is freed twice.
  EXPECT_EQ(reader->next_chunk, nullptr);
  heaplog_reader_close(reader);
}

TEST(HeaplogReaderTest, NextGivesTheSameAsRead) {
  std::string path = TempPath("next.heaplog");
  WriteFile(path, TwoLanes().Build());
  heaplog_reader_t *reader = nullptr;
  ASSERT_EQ(heaplog_reader_open(path.c_str(), &reader, nullptr), 0);
  U64s times;
  heaplog_event_t event;
  while (heaplog_reader_next(reader, &event)) {
    times.push_back(event.time_ns);
  }
  EXPECT_EQ(times, Times(ReadLog(path)));
  EXPECT_EQ(heaplog_reader_status(reader, nullptr), 0);
  EXPECT_EQ(heaplog_reader_read(reader, &event, 0), 0u);
  heaplog_reader_close(reader);
  unlink(path.c_str());
}

TEST(HeaplogReaderTest, RewindStartsOverAndSeesWhatHasBeenAdded) {
  std::string path = TempPath("rewind.heaplog");
  LogBuilder builder = TwoLanes();
  WriteFile(path, builder.Build());
  heaplog_reader_t *reader = nullptr;
  ASSERT_EQ(heaplog_reader_open(path.c_str(), &reader, nullptr), 0);
  std::vector<heaplog_event_t> events(100);
  EXPECT_EQ(heaplog_reader_read(reader, events.data(), 5), 5u);
  EXPECT_GT(heaplog_reader_thread_count(reader), 0u);
  ASSERT_EQ(heaplog_reader_rewind(reader), 0);
  EXPECT_EQ(heaplog_reader_thread_count(reader), 0u);
  EXPECT_EQ(heaplog_reader_read(reader, events.data(), 100), 9u);
  builder.Chunk(0, 2, 100, Frees(0, 100, {200}));
  WriteFile(path, builder.Build());
  EXPECT_EQ(heaplog_reader_read(reader, events.data(), 100), 0u);
  ASSERT_EQ(heaplog_reader_rewind(reader), 0);
  EXPECT_EQ(heaplog_reader_read(reader, events.data(), 100), 10u);
  // Emptied under us.
  WriteFile(path, "");
  EXPECT_EQ(heaplog_reader_rewind(reader), -EINVAL);
  EXPECT_EQ(heaplog_reader_read(reader, events.data(), 100), 0u);
  EXPECT_EQ(heaplog_reader_status(reader, nullptr), -EINVAL);
  heaplog_reader_close(reader);
  unlink(path.c_str());
}

TEST(HeaplogReaderTest, FileMayShrinkWhileItIsRead) {
  std::string path = TempPath("shrink.heaplog");
  LogBuilder builder;
  for (uint32_t i = 0; i < 10; i++) {
    builder.Chunk(0, i, i * 10, Frees(0, i * 10, {i * 10 + 1, i * 10 + 2}));
  }
  WriteFile(path, builder.Build());
  heaplog_reader_t *reader = nullptr;
  ASSERT_EQ(heaplog_reader_open(path.c_str(), &reader, nullptr), 0);
  std::vector<heaplog_event_t> events(100);
  EXPECT_EQ(heaplog_reader_read(reader, events.data(), 5), 5u);
  ASSERT_EQ(truncate(path.c_str(), kChunk1), 0);
  EXPECT_LE(heaplog_reader_read(reader, events.data(), 100), 15u);
  heaplog_error_t error;
  EXPECT_EQ(heaplog_reader_status(reader, &error), -EPROTO);
  EXPECT_EQ(error.code, HEAPLOG_ERROR_TRUNCATED);
  heaplog_reader_close(reader);
  unlink(path.c_str());
}

TEST(HeaplogReaderTest, ChunksMayChangeWhileTheyAreRead) {
  std::string path = TempPath("change.heaplog");
  // Lane 1 begins so early that its second chunk is found long before use.
  LogBuilder builder;
  builder.Chunk(0, 0, 0, Frees(0, 0, {10, 500}));
  builder.Chunk(1, 0, 0, Frees(1, 0, {20, 600}));
  builder.Chunk(0, 1, 700, Frees(0, 700, {800})).horizon_ns = 0;
  builder.Chunk(1, 1, 700, Frees(1, 700, {800})).horizon_ns = 0;
  for (int change = 0; change < 3; change++) {
    std::string bytes = builder.Build();
    WriteFile(path, bytes);
    heaplog_reader_t *reader = nullptr;
    ASSERT_EQ(heaplog_reader_open(path.c_str(), &reader, nullptr), 0);
    std::vector<heaplog_event_t> events(100);
    EXPECT_EQ(heaplog_reader_read(reader, events.data(), 1), 1u);
    if (change == 0) {  // Damaged.
      bytes[kChunk2 + kPayload] ^= 1;
    } else if (change == 1) {  // Not begun.
      std::memset(&bytes[kChunk2], 0, 8);
    } else {  // Of another lane.
      LogBuilder other = builder;
      bytes = other.Build();
      std::string chunk3 = bytes.substr(kChunk2 + HEAPLOG_CHUNK_BYTES);
      bytes.replace(kChunk2, chunk3.size(), chunk3);
    }
    WriteFile(path, bytes);
    // Where the chunk began is known only if its header is still right.
    EXPECT_EQ(heaplog_reader_read(reader, events.data(), 100),
              change == 0 ? 3u : 2u);
    EXPECT_EQ(heaplog_reader_status(reader, nullptr), -EPROTO);
    heaplog_reader_close(reader);
  }
  unlink(path.c_str());
}

}  // namespace
