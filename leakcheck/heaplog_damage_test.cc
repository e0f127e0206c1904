// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A log cut at random places and with random bytes changed. Each time the
// reader must give exactly the beginning of what the whole log gives, as far as
// the format promises, and say that the rest is missing; or the whole, when the
// damage is where nothing lies.
//
// By default the log is small. The full form, some minutes long:
//   bazel test --config=asan --test_env=HEAPLOG_DAMAGE_EVENTS=10000000
//     --test_env=HEAPLOG_DAMAGE_ROUNDS=1000 --test_timeout=7200
//     --test_output=all //leakcheck:heaplog_damage_test

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_format.h"
#include "leakcheck/heaplog_reader.h"
#include "leakcheck/heaplog_test_util.h"
#include "leakcheck/heaplog_writer.h"

namespace {

using heaplog_test::kStartNs;
using heaplog_test::Options;
using heaplog_test::TempPath;

uint64_t FromEnvironment(const char *name, uint64_t otherwise) {
  const char *value = getenv(name);
  return value == nullptr ? otherwise : strtoull(value, nullptr, 10);
}

uint64_t Digest(uint64_t digest, const heaplog_event_t &event) {
  const uint64_t words[] = {
      event.time_ns,  event.address,      event.size_bytes, event.usable_bytes,
      event.stack_id, event.thread_index, event.kind};
  for (uint64_t word : words) {
    digest = (digest ^ word) * 0x9e3779b97f4a7c15u;
    digest ^= digest >> 29;
  }
  return digest;
}

// What one reading gave.
struct Reading {
  int open_status = 0;
  heaplog_error_t error = {};
  uint64_t count = 0;
  uint64_t digest = 0;
};

// A chunk as the undamaged file has it.
struct Chunk {
  uint64_t offset;
  uint64_t payload_bytes;
  uint64_t base_ns;
  uint64_t horizon_before_ns;  // The greatest of the chunks before.
};

class HeaplogDamageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    printf("%" PRIu64 " events, %" PRIu64 " rounds, seed %" PRIu64 "\n",
           num_events_, num_rounds_, seed_);
    WriteLog();
    fd_ = open(path_.c_str(), O_RDWR | O_CLOEXEC);
    ASSERT_GE(fd_, 0);
    file_bytes_ = static_cast<uint64_t>(lseek(fd_, 0, SEEK_END));
    digests_.push_back(0);
    Reading whole = Read(&digests_, &times_);
    ASSERT_EQ(whole.error.code, HEAPLOG_OK) << whole.error.text;
    ASSERT_GE(whole.count, num_events_);
    FindChunks();
    printf("%" PRIu64 " bytes, %zu chunks\n", file_bytes_, chunks_.size());
  }

  void TearDown() override {
    close(fd_);
    unlink(path_.c_str());
  }

  // Several streams of different pace, with ties, definitions and threads that
  // come and go.
  void WriteLog() {
    heaplog_writer_options_t options = Options(path_);
    heaplog_writer_t *writer = nullptr;
    ASSERT_EQ(heaplog_writer_open(&options, &writer), 0);
    std::mt19937_64 random(seed_);
    heaplog_stream_t *streams[6] = {};
    uint64_t time = kStartNs;
    uint32_t stacks = 0;
    for (uint64_t i = 0; i < num_events_; i++) {
      uint64_t bits = random();
      time += bits % 4 == 0 ? 0 : (bits >> 10) % 500;
      // Stream 0 has half of all events, stream 1 a quarter, and so on.
      size_t which = std::min<size_t>(
          static_cast<size_t>(__builtin_ctzll(bits | 1u << 5)), 5);
      heaplog_stream_t *&stream = streams[which];
      if (stream == nullptr || (bits >> 20) % 5000 == 0) {
        heaplog_stream_close(stream, time);
        ASSERT_EQ(heaplog_stream_open(writer, time, i, "thread", &stream), 0);
      }
      if ((bits >> 33) % 200 == 0 && stacks < HEAPLOG_STACK_ID_MAX) {
        stacks++;
        ASSERT_TRUE(heaplog_append_stack(
            stream, stacks, static_cast<uint32_t>(bits) % stacks, random()));
      }
      uint64_t address = 0x5500000000 + (bits >> 40) * 16;
      uint32_t stack =
          stacks == 0 ? 0 : static_cast<uint32_t>(bits >> 8) % stacks;
      bool appended =
          bits >> 63 == 0
              ? heaplog_append_free(stream, time, address, 0)
              : heaplog_append_alloc(stream, time, address, (bits >> 50) % 300,
                                     (bits >> 50) % 300 + 8, stack);
      ASSERT_TRUE(appended);
    }
    for (heaplog_stream_t *stream : streams) {
      heaplog_stream_close(stream, time);
    }
    heaplog_stream_t *last = nullptr;
    ASSERT_EQ(heaplog_stream_open(writer, time, 1, "end", &last), 0);
    ASSERT_TRUE(heaplog_append_end(last, time));
    heaplog_writer_close(writer);
  }

  Reading Read(std::vector<uint64_t> *digests = nullptr,
               std::vector<uint64_t> *times = nullptr) {
    Reading reading;
    heaplog_reader_t *reader = nullptr;
    reading.open_status =
        heaplog_reader_open(path_.c_str(), &reader, &reading.error);
    if (reading.open_status != 0) {
      return reading;
    }
    static heaplog_event_t events[4096];
    size_t count;
    while ((count = heaplog_reader_read(reader, events, 4096)) > 0) {
      for (size_t i = 0; i < count; i++) {
        reading.digest = Digest(reading.digest, events[i]);
        if (digests != nullptr) {
          digests->push_back(reading.digest);
          times->push_back(events[i].time_ns);
        }
      }
      reading.count += count;
    }
    EXPECT_EQ(heaplog_reader_status(reader, &reading.error),
              reading.error.status);
    heaplog_reader_close(reader);
    return reading;
  }

  void FindChunks() {
    uint64_t horizon = 0;
    for (uint64_t offset = HEAPLOG_HEADER_BYTES_MIN; offset < file_bytes_;
         offset += HEAPLOG_CHUNK_BYTES) {
      heaplog_chunk_header_t header;
      ASSERT_EQ(pread(fd_, &header, sizeof(header), static_cast<off_t>(offset)),
                static_cast<ssize_t>(sizeof(header)));
      chunks_.push_back({offset, header.commit & HEAPLOG_COMMIT_LENGTH_MASK,
                         header.base_ns, horizon});
      horizon = std::max(horizon, header.horizon_ns);
    }
  }

  // How many events are before a time; at or before it.
  uint64_t Before(uint64_t time_ns) const {
    return static_cast<uint64_t>(
        std::lower_bound(times_.begin(), times_.end(), time_ns) -
        times_.begin());
  }
  uint64_t UpTo(uint64_t time_ns) const {
    return static_cast<uint64_t>(
        std::upper_bound(times_.begin(), times_.end(), time_ns) -
        times_.begin());
  }

  // A reading of a damaged log: the first `least` to `most` events, and an
  // error unless the damage is `harmless`.
  void Expect(const Reading &reading, uint64_t least, uint64_t most,
              bool harmless) {
    ASSERT_LT(reading.count, digests_.size());
    ASSERT_EQ(reading.digest, digests_[reading.count]) << "not a prefix";
    EXPECT_GE(reading.count, least);
    EXPECT_LE(reading.count, most);
    EXPECT_EQ(reading.error.code == HEAPLOG_OK, harmless) << reading.error.text;
    if (!harmless) {
      EXPECT_LE(reading.error.byte_offset, file_bytes_);
      EXPECT_STRNE(reading.error.text, "");
    }
    num_errors_ += !harmless;
    delivered_ += reading.count;
  }

  // The file with one byte changed is read and judged.
  void Flip(uint64_t offset, unsigned char flip) {
    SCOPED_TRACE("flip " + std::to_string(flip) + " at " +
                 std::to_string(offset));
    unsigned char byte = 0;
    ASSERT_EQ(pread(fd_, &byte, 1, static_cast<off_t>(offset)), 1);
    byte ^= flip;
    ASSERT_EQ(pwrite(fd_, &byte, 1, static_cast<off_t>(offset)), 1);
    Reading reading = Read();
    byte ^= flip;
    ASSERT_EQ(pwrite(fd_, &byte, 1, static_cast<off_t>(offset)), 1);
    const uint64_t all = times_.size();
    if (offset < HEAPLOG_HEADER_BYTES_MIN) {
      bool covered = offset < sizeof(heaplog_file_header_t);
      Expect(reading, covered ? 0 : all, covered ? 0 : all, !covered);
      return;
    }
    const Chunk &chunk =
        chunks_[(offset - HEAPLOG_HEADER_BYTES_MIN) / HEAPLOG_CHUNK_BYTES];
    uint64_t in_chunk = offset - chunk.offset;
    const uint64_t header = sizeof(heaplog_chunk_header_t);
    if (in_chunk >= header + chunk.payload_bytes) {
      Expect(reading, all, all, true);
    } else if (in_chunk >= HEAPLOG_CHUNK_CRC_OFFSET && in_chunk < header) {
      uint64_t count = Before(chunk.horizon_before_ns);
      Expect(reading, count, count, false);
      EXPECT_EQ(reading.error.code, HEAPLOG_ERROR_CHECKSUM);
    } else {
      Expect(reading, Before(chunk.base_ns), UpTo(chunk.base_ns), false);
      EXPECT_EQ(reading.error.code, HEAPLOG_ERROR_CHECKSUM);
    }
  }

  // The file is cut to `size`, which must not grow from call to call.
  void Cut(uint64_t size) {
    SCOPED_TRACE("cut at " + std::to_string(size));
    ASSERT_EQ(ftruncate(fd_, static_cast<off_t>(size)), 0);
    Reading reading = Read();
    const uint64_t header = sizeof(heaplog_chunk_header_t);
    if (size < sizeof(heaplog_file_header_t)) {
      EXPECT_NE(reading.open_status, 0);
      Expect(reading, 0, 0, false);
      return;
    }
    size_t i = 0;
    while (i < chunks_.size() &&
           chunks_[i].offset + header + chunks_[i].payload_bytes <= size) {
      i++;
    }
    if (i == chunks_.size()) {
      Expect(reading, times_.size(), times_.size(), true);
    } else if (size < chunks_[i].offset + header) {
      uint64_t count = Before(chunks_[i].horizon_before_ns);
      Expect(reading, count, count, false);
      EXPECT_EQ(reading.error.code, HEAPLOG_ERROR_TRUNCATED);
    } else {
      uint64_t known = i + 1 < chunks_.size() ? chunks_[i + 1].horizon_before_ns
                                              : chunks_[i].base_ns;
      Expect(reading, Before(std::min(known, chunks_[i].base_ns)),
             UpTo(chunks_[i].base_ns), false);
      EXPECT_EQ(reading.error.code, HEAPLOG_ERROR_TRUNCATED);
    }
  }

  void Report(const char *what, uint64_t rounds) {
    printf("%s: %" PRIu64 " rounds, %" PRIu64
           " with an error; on average %.1f "
           "%% of the events delivered\n",
           what, rounds, num_errors_,
           100.0 * static_cast<double>(delivered_) /
               static_cast<double>(rounds) /
               static_cast<double>(times_.size()));
  }

  const uint64_t num_events_ = FromEnvironment("HEAPLOG_DAMAGE_EVENTS", 150000);
  const uint64_t num_rounds_ = FromEnvironment("HEAPLOG_DAMAGE_ROUNDS", 200);
  const uint64_t seed_ =
      FromEnvironment("HEAPLOG_DAMAGE_SEED", std::random_device{}());
  std::string path_ = TempPath("damage.heaplog");
  int fd_ = -1;
  uint64_t file_bytes_ = 0;
  std::vector<Chunk> chunks_;
  std::vector<uint64_t> digests_;  // By number of events.
  std::vector<uint64_t> times_;
  uint64_t num_errors_ = 0;
  uint64_t delivered_ = 0;
};

TEST_F(HeaplogDamageTest, ChangedBytesAreSeenOrHarmless) {
  std::mt19937_64 random(seed_ + 1);
  for (uint64_t i = 0; i < num_rounds_ && !HasFailure(); i++) {
    Flip(random() % file_bytes_,
         static_cast<unsigned char>(1 + random() % 255));
  }
  Report("changed bytes", num_rounds_);
}

// Headers are a thousandth of the file; chance alone would hardly try them.
TEST_F(HeaplogDamageTest, ChangedHeadersAreSeenOrHarmless) {
  std::mt19937_64 random(seed_ + 2);
  uint64_t rounds = std::max<uint64_t>(num_rounds_ / 4, 100);
  for (uint64_t i = 0; i < rounds && !HasFailure(); i++) {
    uint64_t start = i % 4 == 0 ? 0 : chunks_[random() % chunks_.size()].offset;
    Flip(start + random() % 80, static_cast<unsigned char>(1 + random() % 255));
  }
  Report("changed headers", rounds);
}

TEST_F(HeaplogDamageTest, CutsGiveTheBeginning) {
  std::mt19937_64 random(seed_ + 3);
  std::vector<uint64_t> sizes;
  for (uint64_t i = 0; i < num_rounds_; i++) {
    sizes.push_back(random() % file_bytes_);
  }
  // And around the places where something begins or ends.
  for (int i = 0; i < 20; i++) {
    const Chunk &chunk = chunks_[random() % chunks_.size()];
    for (uint64_t offset :
         {uint64_t{0}, uint64_t{8}, uint64_t{64}, 64 + chunk.payload_bytes}) {
      sizes.push_back(chunk.offset + offset);
      sizes.push_back(chunk.offset + offset - 1);
    }
  }
  std::sort(sizes.rbegin(), sizes.rend());
  for (uint64_t size : sizes) {
    Cut(size);
    if (HasFailure()) {
      break;
    }
  }
  Report("cuts", sizes.size());
}

}  // namespace
