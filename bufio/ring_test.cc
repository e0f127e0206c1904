// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bufio/bufio_testing.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::FaultyKernel;
using bufio_testing::Pattern;
using bufio_testing::Seed;
using bufio_testing::TempPath;

std::string ToString(const bufio_ring_view_t &view) {
  std::string bytes;
  for (const bufio_ring_part_t &part : view.part) {
    bytes.append(reinterpret_cast<const char *>(part.data), part.len);
  }
  return bytes;
}

// Rings are not on the stack: gcc's frames for "use after return" are not as
// aligned as they are.
class RingTest : public testing::Test {
 protected:
  ~RingTest() override {
    bufio_ring_close(&ring_);
    unlink(path_.c_str());
  }

  void Open(size_t capacity) {
    ASSERT_EQ(bufio_ring_open(&ring_, nullptr, capacity, &options_), 0);
    ASSERT_TRUE(bufio_ring_is_mirrored(&ring_));
  }

  // A ring of 64 bytes, which is never mirrored.
  void InitSmall() {
    ASSERT_EQ(bufio_ring_init(&ring_, memory_, BUFIO_RING_HEADER_BYTES + 64,
                              &options_),
              0);
    ASSERT_EQ(ring_.capacity_bytes, 64u);
  }

  std::string Take() {
    bufio_ring_view_t view;
    if (!bufio_ring_peek(&ring_, &view)) {
      return "";
    }
    std::string bytes = ToString(view);
    bufio_ring_consume(&ring_, bytes.size());
    return bytes;
  }

  alignas(64) unsigned char memory_[3 * 4096];
  std::string path_ = TempPath("ring");
  bufio_ring_options_t options_ = {};
  bufio_ring_t ring_ = {};
};

// ---- lifecycle ----

TEST_F(RingTest, MemoryTooSmallOrCrookedIsRefused) {
  EXPECT_EQ(bufio_ring_init(&ring_, memory_, 4096 + 63, nullptr), -EINVAL);
  EXPECT_EQ(bufio_ring_init(&ring_, memory_ + 8, 8192, nullptr), -EINVAL);
  EXPECT_EQ(bufio_ring_attach(&ring_, memory_ + 8, 8192), -EPROTO);
  EXPECT_EQ(bufio_ring_attach(&ring_, memory_, 100), -EPROTO);
  EXPECT_EQ(bufio_ring_open(&ring_, nullptr, SIZE_MAX, nullptr), -EINVAL);
  bufio_ring_close(nullptr);
}

TEST_F(RingTest, CapacityIsTheLargestPowerOfTwoThatFits) {
  ASSERT_EQ(bufio_ring_init(&ring_, memory_, sizeof(memory_), nullptr), 0);
  EXPECT_EQ(ring_.capacity_bytes, 8192u);
  ASSERT_EQ(bufio_ring_init(&ring_, memory_, sizeof(memory_) - 1, nullptr), 0);
  EXPECT_EQ(ring_.capacity_bytes, 4096u);
  bufio_ring_close(&ring_);
  Open(5000);
  EXPECT_EQ(ring_.capacity_bytes, 8192u);
}

TEST_F(RingTest, AttachFindsWhatIsThere) {
  InitSmall();
  EXPECT_TRUE(bufio_ring_write(&ring_, "hello", 5));
  auto other_ring = std::make_unique<bufio_ring_t>();
  bufio_ring_t &other = *other_ring;
  ASSERT_EQ(bufio_ring_attach(&other, memory_, BUFIO_RING_HEADER_BYTES + 64),
            0);
  char bytes[10];
  EXPECT_EQ(bufio_ring_read(&other, bytes, 10), 5u);
  EXPECT_EQ(memcmp(bytes, "hello", 5), 0);
}

TEST_F(RingTest, EveryCallOfOpenMayFail) {
  for (uint64_t failing = 1;; failing++) {
    FaultyKernel kernel;
    kernel.decide = [&](Call, size_t) -> int64_t {
      return kernel.calls() == failing ? -ENOMEM : 0;
    };
    int status = bufio_ring_open(&ring_, path_.c_str(), 4096, nullptr);
    bool done = kernel.calls() < failing;
    if (status == 0) {
      // Without the mirror it works too.
      for (size_t i = 0; i < 3000; i++) {
        ASSERT_TRUE(bufio_ring_write(&ring_, Pattern(i * 7, 7).data(), 7));
        ASSERT_EQ(Take(), Pattern(i * 7, 7));
      }
      EXPECT_STREQ(bufio_ring_check(&ring_), nullptr);
      bufio_ring_close(&ring_);
    } else {
      EXPECT_EQ(status, -ENOMEM);
      EXPECT_EQ(ring_.shared, nullptr);
    }
    unlink(path_.c_str());
    if (done) {
      break;
    }
  }
}

// ---- bytes ----

TEST_F(RingTest, EmptyFullAndWrapInMirroredMemory) {
  Open(4096);
  bufio_ring_view_t view;
  EXPECT_FALSE(bufio_ring_peek(&ring_, &view));
  uint64_t at = 0;
  for (size_t len : {4096, 1, 4095, 1000, 3096, 4096}) {
    ASSERT_TRUE(bufio_ring_reserve(&ring_, len, &view));
    EXPECT_EQ(view.part[0].len, len);
    EXPECT_EQ(view.part[1].len, 0u);
    memcpy(view.part[0].data, Pattern(at, len).data(), len);
    bufio_ring_commit(&ring_, len);
    EXPECT_FALSE(bufio_ring_reserve(&ring_, 4096 - len + 1, &view));
    ASSERT_TRUE(bufio_ring_peek(&ring_, &view));
    EXPECT_EQ(view.part[1].len, 0u);
    EXPECT_EQ(ToString(view), Pattern(at, len));
    bufio_ring_consume(&ring_, len);
    at += len;
    EXPECT_STREQ(bufio_ring_check(&ring_), nullptr);
  }
}

TEST_F(RingTest, ViewsOfUnmirroredMemoryAreSplit) {
  InitSmall();
  EXPECT_TRUE(bufio_ring_write(&ring_, Pattern(0, 50).data(), 50));
  EXPECT_EQ(Take(), Pattern(0, 50));
  EXPECT_TRUE(bufio_ring_write(&ring_, Pattern(50, 40).data(), 40));
  bufio_ring_view_t view;
  ASSERT_TRUE(bufio_ring_peek(&ring_, &view));
  EXPECT_EQ(view.part[0].len, 14u);
  EXPECT_EQ(view.part[1].len, 26u);
  EXPECT_EQ(Take(), Pattern(50, 40));
}

TEST_F(RingTest, MoreThanTheCapacityIsRefused) {
  InitSmall();
  EXPECT_FALSE(bufio_ring_write(&ring_, memory_, 65));
  EXPECT_TRUE(bufio_ring_write(&ring_, memory_, 64));
  EXPECT_FALSE(bufio_ring_write(&ring_, memory_, 1));
  bufio_ring_consume(&ring_, 1000);
  EXPECT_TRUE(bufio_ring_write(&ring_, memory_, 64));
}

TEST_F(RingTest, OverwritingKeepsTheNewestBytes) {
  options_.overwrite = true;
  InitSmall();
  std::string all;
  for (size_t len : {10, 64, 3, 1, 60, 17, 64, 63}) {
    std::string bytes = Pattern(all.size(), len);
    ASSERT_TRUE(bufio_ring_write(&ring_, bytes.data(), len));
    all += bytes;
  }
  EXPECT_EQ(Take(), all.substr(all.size() - 64));
  EXPECT_FALSE(bufio_ring_write(&ring_, memory_, 65));
}

// ---- records ----

TEST_F(RingTest, RecordsStayTogether) {
  InitSmall();
  EXPECT_TRUE(bufio_ring_put_record(&ring_, "one", 3));
  EXPECT_TRUE(bufio_ring_put_record(&ring_, "", 0));
  EXPECT_TRUE(bufio_ring_put_record(&ring_, Pattern(0, 20).data(), 20));
  EXPECT_FALSE(bufio_ring_put_record(&ring_, "too much", 8));
  EXPECT_FALSE(bufio_ring_put_record(&ring_, memory_, 57));
  bufio_ring_view_t view;
  ASSERT_TRUE(bufio_ring_peek_record(&ring_, &view));
  EXPECT_EQ(ToString(view), "one");
  bufio_ring_consume_record(&ring_);
  ASSERT_TRUE(bufio_ring_peek_record(&ring_, &view));
  EXPECT_EQ(ToString(view), "");
  bufio_ring_consume_record(&ring_);
  ASSERT_TRUE(bufio_ring_peek_record(&ring_, &view));
  EXPECT_EQ(ToString(view), Pattern(0, 20));
  bufio_ring_consume_record(&ring_);
  EXPECT_FALSE(bufio_ring_peek_record(&ring_, &view));
  bufio_ring_consume_record(&ring_);
  EXPECT_TRUE(bufio_ring_put_record(&ring_, memory_, 56));
}

// Random records against a deque.
TEST_F(RingTest, OverwritingDropsWholeRecordsOldestFirst) {
  for (bool mirrored : {false, true}) {
    options_.overwrite = true;
    if (mirrored) {
      Open(4096);
    } else {
      InitSmall();
    }
    std::mt19937_64 random(Seed());
    std::deque<std::string> model;
    size_t used = 0;
    auto frame = [](size_t len) {
      return (8 + len + 7) / 8 * 8;
    };
    for (int i = 0; i < 20000; i++) {
      size_t len = random() % (ring_.capacity_bytes - 7);
      if (random() % 4 != 0) {
        len %= 20;
      }
      std::string record = Pattern(random(), len);
      ASSERT_TRUE(bufio_ring_put_record(&ring_, record.data(), len));
      used += frame(len);
      model.push_back(record);
      while (used > ring_.capacity_bytes) {
        used -= frame(model.front().size());
        model.pop_front();
      }
      if (random() % 3 == 0) {
        bufio_ring_view_t view;
        ASSERT_TRUE(bufio_ring_peek_record(&ring_, &view));
        ASSERT_EQ(ToString(view), model.front());
        bufio_ring_consume_record(&ring_);
        used -= frame(model.front().size());
        model.pop_front();
      }
      ASSERT_STREQ(bufio_ring_check(&ring_), nullptr);
      ASSERT_EQ(bufio_ring_error(&ring_), 0);
    }
    while (!model.empty()) {
      bufio_ring_view_t view;
      ASSERT_TRUE(bufio_ring_peek_record(&ring_, &view));
      ASSERT_EQ(ToString(view), model.front());
      bufio_ring_consume_record(&ring_);
      model.pop_front();
    }
    bufio_ring_close(&ring_);
  }
}

// ---- files ----

TEST_F(RingTest, FileKeepsWhatItHeld) {
  ASSERT_EQ(bufio_ring_open(&ring_, path_.c_str(), 4096, nullptr), 0);
  EXPECT_TRUE(bufio_ring_write(&ring_, "hello", 5));
  bufio_ring_close(&ring_);
  EXPECT_EQ(bufio_ring_open(&ring_, path_.c_str(), 8192, nullptr), -EPROTO);
  options_.overwrite = true;
  EXPECT_EQ(bufio_ring_open(&ring_, path_.c_str(), 4096, &options_), -EPROTO);
  ASSERT_EQ(bufio_ring_open(&ring_, path_.c_str(), 4096, nullptr), 0);
  EXPECT_EQ(Take(), "hello");
}

// Killed at any instruction, it holds the newest records, whole.
TEST_F(RingTest, FlightRecorderSurvivesSigkill) {
  options_.overwrite = true;
  std::mt19937_64 random(Seed());
  for (int round = 0; round < 30; round++) {
    unlink(path_.c_str());
    ASSERT_EQ(bufio_ring_open(&ring_, path_.c_str(), 4096, &options_), 0);
    // The number of the last record put.
    auto acks_ring = std::make_unique<bufio_ring_t>();
    bufio_ring_t &acks = *acks_ring;
    ASSERT_EQ(bufio_ring_open(&acks, nullptr, 4096, nullptr), 0);
    auto *last = reinterpret_cast<std::atomic<uint64_t> *>(acks.data);
    pid_t child = fork();
    if (child == 0) {
      for (uint64_t i = 1;; i++) {
        std::string bytes = Pattern(i, i % 100);
        bytes.append(reinterpret_cast<const char *>(&i), 8);
        if (!bufio_ring_put_record(&ring_, bytes.data(), bytes.size())) {
          _exit(1);
        }
        *last = i;
      }
    }
    uint64_t target = 100 + random() % 1000;
    while (*last < target) {
      ASSERT_EQ(waitpid(child, nullptr, WNOHANG), 0);
      std::this_thread::yield();
    }
    ASSERT_EQ(kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    bufio_ring_close(&ring_);
    ASSERT_EQ(bufio_ring_open(&ring_, path_.c_str(), 4096, &options_), 0);
    bufio_ring_view_t view;
    uint64_t previous = 0;
    while (bufio_ring_peek_record(&ring_, &view)) {
      std::string bytes = ToString(view);
      uint64_t i;
      ASSERT_GE(bytes.size(), 8u);
      memcpy(&i, &bytes[bytes.size() - 8], 8);
      ASSERT_EQ(bytes.substr(0, bytes.size() - 8), Pattern(i, i % 100));
      ASSERT_TRUE(previous == 0 || i == previous + 1);
      previous = i;
      bufio_ring_consume_record(&ring_);
    }
    EXPECT_EQ(bufio_ring_error(&ring_), 0);
    EXPECT_GE(previous, *last);
    EXPECT_LE(previous, *last + 1);
    bufio_ring_close(&ring_);
    bufio_ring_close(&acks);
  }
}

// Only a header without its magic is finished by the next open.
TEST_F(RingTest, FileThatOnlyBeginsWithZerosIsNotTaken) {
  for (size_t place : {8, 12, 16, 24, 28, 40, 64, 128, 192, 400, 4095}) {
    std::string bytes(BUFIO_RING_HEADER_BYTES + 4096, '\0');
    bytes[place] = 'x';
    bytes[bytes.size() - 1] = 'y';
    bufio_testing::WriteFile(path_, bytes);
    EXPECT_EQ(bufio_ring_open(&ring_, path_.c_str(), 4096, nullptr), -EPROTO)
        << place;
    EXPECT_EQ(bufio_testing::ReadFile(path_), bytes);
  }
}

TEST_F(RingTest, HeaderWhoseMakerDiedIsFinished) {
  ASSERT_EQ(bufio_ring_open(&ring_, path_.c_str(), 4096, nullptr), 0);
  bufio_ring_close(&ring_);
  std::string whole = bufio_testing::ReadFile(path_);
  // Stores come in any order, the magic last.
  for (unsigned missing = 0; missing < 8; missing++) {
    std::string bytes = whole;
    bytes.replace(0, 8, 8, '\0');
    const size_t fields[3][2] = {{8, 4}, {12, 4}, {16, 8}};
    for (unsigned i = 0; i < 3; i++) {
      if ((missing >> i & 1) != 0) {
        bytes.replace(fields[i][0], fields[i][1], fields[i][1], '\0');
      }
    }
    bufio_testing::WriteFile(path_, bytes);
    ASSERT_EQ(bufio_ring_open(&ring_, path_.c_str(), 4096, nullptr), 0);
    bufio_ring_close(&ring_);
    EXPECT_EQ(bufio_testing::ReadFile(path_), whole);
  }
}

TEST_F(RingTest, MakerExcludesOthersUntilTheRingIsThere) {
  FaultyKernel kernel;
  int open_result = 1;
  kernel.after = [&](Call call, int64_t) {
    // In the middle of the making another open finds the lock taken.
    if (call == Call::kAllocate && open_result == 1) {
      int other = open(path_.c_str(), O_RDWR | O_CLOEXEC);
      open_result = flock(other, LOCK_EX | LOCK_NB);
      close(other);
    }
  };
  ASSERT_EQ(bufio_ring_open(&ring_, path_.c_str(), 4096, nullptr), 0);
  EXPECT_EQ(open_result, -1);
  auto other_ring = std::make_unique<bufio_ring_t>();
  bufio_ring_t &other = *other_ring;
  ASSERT_EQ(bufio_ring_open(&other, path_.c_str(), 4096, nullptr), 0);
  bufio_ring_close(&other);
}

TEST_F(RingTest, FileSystemWithoutLocksHasRings) {
  FaultyKernel kernel;
  kernel.decide = [](Call call, size_t) -> int64_t {
    return call == Call::kLock ? -ENOLCK : 0;
  };
  EXPECT_EQ(bufio_ring_open(&ring_, path_.c_str(), 4096, nullptr), 0);
}

TEST_F(RingTest, HeadBeforeTheTailIsNonsenseForBothSides) {
  InitSmall();
  EXPECT_TRUE(bufio_ring_write(&ring_, "hello", 5));
  for (bool produces : {true, false}) {
    ring_.shared->head = 5 + 8;
    auto other_ring = std::make_unique<bufio_ring_t>();
    bufio_ring_t &other = *other_ring;
    ASSERT_EQ(bufio_ring_attach(&other, memory_, BUFIO_RING_HEADER_BYTES + 64),
              0);
    bufio_ring_view_t view;
    if (produces) {
      EXPECT_FALSE(bufio_ring_reserve(&other, 1, &view));
    } else {
      bufio_ring_consume(&other, 3);
      EXPECT_EQ(ring_.shared->head, 13u);
      EXPECT_FALSE(bufio_ring_peek(&other, &view));
    }
    EXPECT_EQ(bufio_ring_error(&other), -EPROTO);
  }
}

TEST_F(RingTest, HostileHeadersAreRefused) {
  InitSmall();
  std::string good(reinterpret_cast<char *>(memory_), 512);
  for (size_t byte : {0, 8, 12, 16, 17, 23, 25, 71, 135}) {
    memcpy(memory_, good.data(), good.size());
    memory_[byte] ^= 0xc0;
    auto other_ring = std::make_unique<bufio_ring_t>();
    bufio_ring_t &other = *other_ring;
    EXPECT_EQ(bufio_ring_attach(&other, memory_, BUFIO_RING_HEADER_BYTES + 64),
              -EPROTO)
        << byte;
  }
}

TEST_F(RingTest, NonsenseOfThePeerIsAnErrorNotAnIndex) {
  InitSmall();
  EXPECT_TRUE(bufio_ring_write(&ring_, "hello", 5));
  ring_.shared->tail = 1000;
  bufio_ring_view_t view;
  EXPECT_FALSE(bufio_ring_peek(&ring_, &view));
  EXPECT_EQ(bufio_ring_error(&ring_), -EPROTO);
  EXPECT_FALSE(bufio_ring_write(&ring_, "x", 1));
  EXPECT_NE(bufio_ring_check(&ring_), nullptr);
  InitSmall();
  EXPECT_TRUE(bufio_ring_write(&ring_, "no record", 9));
  EXPECT_FALSE(bufio_ring_peek_record(&ring_, &view));
  EXPECT_EQ(bufio_ring_error(&ring_), -EPROTO);
  InitSmall();
  EXPECT_TRUE(bufio_ring_write(&ring_, memory_, 60));
  ring_.shared->head = 100;
  EXPECT_FALSE(bufio_ring_write(&ring_, memory_, 10));
  EXPECT_EQ(bufio_ring_error(&ring_), -EPROTO);
}

// ---- threads ----

// Sends `total` bytes through, in pieces by lot, and compares.
void Transport(bufio_ring_t *ring, size_t total, bool blocking) {
  std::thread consumer([=] {
    std::mt19937_64 random(2);
    std::vector<char> piece(ring->capacity_bytes);
    size_t got = 0;
    while (got < total) {
      if (blocking) {
        ASSERT_EQ(bufio_ring_wait_readable(ring, 1, -1), 0);
      }
      size_t count =
          bufio_ring_read(ring, piece.data(), 1 + random() % piece.size());
      ASSERT_EQ(std::string(piece.data(), count), Pattern(got, count));
      got += count;
      if (count == 0) {
        std::this_thread::yield();
      }
    }
    if (blocking) {
      EXPECT_EQ(bufio_ring_wait_readable(ring, 1, -1), -EPIPE);
    }
  });
  std::mt19937_64 random(3);
  std::string bytes = Pattern(0, total);
  for (size_t at = 0; at < total;) {
    size_t len = 1 + random() % ring->capacity_bytes;
    len = std::min(len, total - at);
    if (blocking) {
      ASSERT_EQ(bufio_ring_wait_writable(ring, len, -1), 0);
    }
    if (bufio_ring_write(ring, &bytes[at], len)) {
      at += len;
    } else {
      ASSERT_FALSE(blocking);
      std::this_thread::yield();
    }
  }
  if (blocking) {
    bufio_ring_close_producer(ring);
  }
  consumer.join();
}

TEST_F(RingTest, TwoThreadsWithoutLocks) {
  InitSmall();
  Transport(&ring_, 300000, false);
  bufio_ring_close(&ring_);
  Open(4096);
  Transport(&ring_, 3000000, false);
}

TEST_F(RingTest, TwoThreadsThatSleep) {
  options_.blocking = true;
  InitSmall();
  Transport(&ring_, 300000, true);
  bufio_ring_close(&ring_);
  Open(4096);
  Transport(&ring_, 3000000, true);
}

TEST_F(RingTest, TwoProcessesThatSleep) {
  options_.blocking = true;
  ASSERT_EQ(bufio_ring_open(&ring_, path_.c_str(), 4096, &options_), 0);
  pid_t child = fork();
  if (child == 0) {
    auto mine_ring = std::make_unique<bufio_ring_t>();
    bufio_ring_t &mine = *mine_ring;
    if (bufio_ring_open(&mine, path_.c_str(), 4096, &options_) != 0) {
      _exit(1);
    }
    for (uint64_t i = 0; i < 20000; i++) {
      if (bufio_ring_wait_writable(&mine, 8, -1) != 0 ||
          !bufio_ring_write(&mine, &i, 8)) {
        _exit(2);
      }
    }
    bufio_ring_close_producer(&mine);
    _exit(0);
  }
  for (uint64_t i = 0; i < 20000; i++) {
    uint64_t got = 0;
    ASSERT_EQ(bufio_ring_wait_readable(&ring_, 8, -1), 0);
    ASSERT_EQ(bufio_ring_read(&ring_, &got, 8), 8u);
    ASSERT_EQ(got, i);
  }
  EXPECT_EQ(bufio_ring_wait_readable(&ring_, 8, -1), -EPIPE);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(RingTest, WaitingSaysWhyItEnded) {
  options_.blocking = true;
  InitSmall();
  EXPECT_EQ(bufio_ring_wait_readable(&ring_, 1, 1), -ETIMEDOUT);
  EXPECT_EQ(bufio_ring_wait_readable(&ring_, 65, 1), -EINVAL);
  EXPECT_TRUE(bufio_ring_write(&ring_, memory_, 60));
  EXPECT_EQ(bufio_ring_wait_readable(&ring_, 60, 0), 0);
  EXPECT_EQ(bufio_ring_wait_writable(&ring_, 5, 1), -ETIMEDOUT);
  EXPECT_EQ(bufio_ring_wait_writable(&ring_, 4, 1), 0);
  bufio_ring_close_producer(&ring_);
  EXPECT_EQ(bufio_ring_wait_readable(&ring_, 60, -1), 0);
  EXPECT_EQ(bufio_ring_wait_readable(&ring_, 61, -1), -EPIPE);
  bufio_ring_close_consumer(&ring_);
  EXPECT_EQ(bufio_ring_wait_writable(&ring_, 5, -1), -EPIPE);
  options_.blocking = false;
  InitSmall();
  EXPECT_EQ(bufio_ring_wait_readable(&ring_, 1, 1), -EINVAL);
}

}  // namespace
