// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// SIGKILL at any instruction of a writer of level `process`: every record whose
// write returned is in the file after the replay, once, whole and in order, and
// nothing follows them but at most the one that was being written.
//
// 150 kills, or BUFIO_KILLS of them. BUFIO_TEST_SEED for other random numbers.

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>

#include "bufio/bufio_testing.h"
#include "bufio/journal.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::Exists;
using bufio_testing::FaultyKernel;
using bufio_testing::HasNotes;
using bufio_testing::Pattern;
using bufio_testing::ReadFile;
using bufio_testing::Seed;
using bufio_testing::TempPath;

// Seen by the parent while the child runs, and after it.
struct Progress {
  std::atomic<uint64_t> acknowledged;  // Records whose write returned 0.
  std::atomic<uint64_t> is_open;
};

class KillTest : public testing::Test {
 protected:
  KillTest() {
    void *memory = mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    progress_ = new (memory) Progress{};
    options_.durability = BUFIO_DURABILITY_PROCESS;
    options_.append = true;
  }

  ~KillTest() override {
    munmap(progress_, sizeof(Progress));
    unlink(path_.c_str());
    unlink((path_ + ".bufio-journal").c_str());
  }

  std::string path_ = TempPath("kill");
  bufio_writer_options_t options_ = {};
  Progress *progress_ = nullptr;
};

// Record `i`: its number, its length, and bytes that follow from both. Cheap:
// the time between commit and acknowledgement should be much of the whole.
class Record {
 public:
  explicit Record(uint64_t i) {
    static const std::string *pattern = new std::string(Pattern(0, 100000));
    uint64_t hash = (i + 1) * 0x9e3779b97f4a7c15u;
    uint64_t len = hash >> 32;
    len = hash % 61 == 0 ? len % 30000 : len % 200;
    memcpy(head_, &i, 8);
    memcpy(head_ + 8, &len, 8);
    body_ = pattern->data() + hash % 60000;
    len_ = len;
  }

  size_t size() const {
    return sizeof(head_) + len_;
  }
  struct iovec Part(int which) {
    return which == 0 ? iovec{head_, sizeof(head_)}
                      : iovec{const_cast<char *>(body_), len_};
  }
  void CopyTo(unsigned char *target) const {
    memcpy(target, head_, sizeof(head_));
    memcpy(target + sizeof(head_), body_, len_);
  }
  bool IsAt(const std::string &file, size_t offset) const {
    return file.size() - offset >= size() &&
           memcmp(&file[offset], head_, sizeof(head_)) == 0 &&
           memcmp(&file[offset] + sizeof(head_), body_, len_) == 0;
  }

 private:
  char head_[16];
  const char *body_;
  size_t len_;
};

// Hands a record over, in a way that depends on its number.
int WriteRecord(bufio_writer_t *writer, uint64_t i) {
  Record record(i);
  if (i % 3 == 0 && record.size() < 4000) {
    unsigned char *room = bufio_writer_reserve(writer, record.size());
    if (room == nullptr) {
      return bufio_writer_error(writer);
    }
    record.CopyTo(room);
    return bufio_writer_commit(writer, record.size());
  }
  if (i % 3 == 1) {
    struct iovec parts[2] = {record.Part(0), record.Part(1)};
    return bufio_writer_write_vector(writer, parts, 2);
  }
  static unsigned char whole[65536];
  record.CopyTo(whole);
  return bufio_writer_write(writer, whole, record.size());
}

// Counts the records from `*offset` on and moves it behind the last whole one;
// false if anything else is there.
bool Count(const std::string &file, size_t *offset, uint64_t *count) {
  while (*offset < file.size()) {
    Record record(*count);
    if (!record.IsAt(file, *offset)) {
      return false;
    }
    *offset += record.size();
    ++*count;
  }
  return true;
}

// Writes records until killed, from the first that the file has not. The way
// of handing them over changes from record to record.
[[noreturn]] void WriteUntilKilled(const std::string &path,
                                   const bufio_writer_options_t &options,
                                   size_t offset, uint64_t count,
                                   Progress *progress) {
  bufio_writer_t writer;
  if (bufio_writer_open(&writer, path.c_str(), &options) != 0) {
    _exit(1);
  }
  std::string tail = ReadFile(path, offset);
  size_t tail_offset = 0;
  if (!Count(tail, &tail_offset, &count)) {
    _exit(2);
  }
  progress->acknowledged = count;
  progress->is_open = 1;
  for (uint64_t i = count;; i++) {
    if (WriteRecord(&writer, i) != 0) {
      _exit(3);
    }
    progress->acknowledged.store(i + 1, std::memory_order_release);
    if (i % 997 == 0 && bufio_writer_flush(&writer) != 0) {
      _exit(5);
    }
  }
}

TEST_F(KillTest, NothingIsLostTornOrRepeated) {
  const char *text = getenv("BUFIO_KILLS");
  uint64_t kills = text != nullptr ? strtoull(text, nullptr, 0) : 150;
  std::mt19937_64 random(Seed());
  size_t offset = 0;   // Of the file, that was verified.
  uint64_t count = 0;  // Records before it.
  uint64_t replays = 0;
  uint64_t unacknowledged = 0;
  for (uint64_t round = 0; round < kills; round++) {
    SCOPED_TRACE(testing::Message()
                 << "round " << round << ", seed " << Seed());
    options_.buffer_bytes = random() % 2 == 0 ? 4096 : 65536;
    progress_->is_open = 0;
    progress_->acknowledged = count;
    uint64_t target = count + random() % (uint64_t{1} << random() % 14);
    uint64_t spins = random() % (uint64_t{1} << random() % 16);
    // Now and then it does not even get to open.
    bool kill_at_once = random() % 16 == 0;
    pid_t child = fork();
    if (child == 0) {
      WriteUntilKilled(path_, options_, offset, count, progress_);
    }
    ASSERT_GT(child, 0);
    while (!kill_at_once &&
           (progress_->is_open == 0 ||
            progress_->acknowledged.load(std::memory_order_acquire) < target)) {
      ASSERT_EQ(waitpid(child, nullptr, WNOHANG), 0) << "the writer gave up";
      std::this_thread::yield();
    }
    // On to an instruction nobody chose.
    for (std::atomic<uint64_t> spin{0}; spin < spins; spin++) {
    }
    ASSERT_EQ(kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << status;
    if (!Exists(path_)) {
      continue;
    }
    bufio_journal_result_t result = {};
    ASSERT_EQ(bufio_journal_replay(path_.c_str(), nullptr, &result), 0);
    EXPECT_FALSE(Exists(path_ + ".bufio-journal"));
    replays += result.appended_bytes + result.removed_bytes > 0;
    std::string fresh = ReadFile(path_, offset);
    size_t fresh_offset = 0;
    uint64_t before = progress_->acknowledged;
    ASSERT_TRUE(Count(fresh, &fresh_offset, &count)) << "torn or repeated";
    offset += fresh_offset;
    ASSERT_GE(count, before) << "lost";
    ASSERT_LE(count, before + 1) << "appeared from nowhere";
    unacknowledged += count - before;
    if (offset > (64u << 20)) {
      unlink(path_.c_str());
      offset = 0;
      count = 0;
    }
  }
  printf("%" PRIu64 " kills: 0 lost, 0 torn, 0 duplicated; %" PRIu64
         " replays with something to do, %" PRIu64
         " records committed whose write had not returned\n",
         kills, replays, unacknowledged);
  EXPECT_GT(replays, 0u) << "all deaths came when nothing was buffered";
}

// ---- every system call, rather than by chance ----

constexpr uint64_t kScript = 400;

// Dies at call number `at`: before it, after it, or when part of it is done.
[[noreturn]] void RunScript(const std::string &path,
                            const bufio_writer_options_t &options, uint64_t at,
                            int how, Progress *progress) {
  FaultyKernel kernel;
  auto die = [] {
    kill(getpid(), SIGKILL);
  };
  kernel.decide = [&](Call, size_t len) -> int64_t {
    if (kernel.calls() == at && how == 0) {
      die();
    }
    return kernel.calls() == at && how == 1 && len > 1
               ? static_cast<int64_t>(len / 2)
               : 0;
  };
  kernel.after = [&](Call, int64_t) {
    if (kernel.calls() == at) {
      die();
    }
  };
  bufio_writer_t writer;
  if (bufio_writer_open(&writer, path.c_str(), &options) != 0) {
    _exit(1);
  }
  for (uint64_t i = 0; i < kScript; i++) {
    if (WriteRecord(&writer, i) != 0) {
      _exit(2);
    }
    progress->acknowledged = i + 1;
  }
  _exit(bufio_writer_close(&writer) == 0 ? 0 : 3);
}

// Not on every file system, and not before the side file is there.
bool HasNote(const std::string &path) {
  return getxattr(path.c_str(), "user.bufio.journal", nullptr, 0) > 0;
}

TEST_F(KillTest, NothingIsLostAtAnySystemCall) {
  options_.buffer_bytes = 4096;
  uint64_t points = 0;
  uint64_t by_other_name = 0;
  for (int how = 0; how < 3; how++) {
    for (uint64_t at = 1;; at++) {
      SCOPED_TRACE(testing::Message() << "call " << at << " way " << how);
      unlink(path_.c_str());
      unlink((path_ + ".bufio-journal").c_str());
      progress_->acknowledged = 0;
      pid_t child = fork();
      if (child == 0) {
        RunScript(path_, options_, at, how, progress_);
      }
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      if (WIFEXITED(status)) {
        ASSERT_EQ(WEXITSTATUS(status), 0);
        break;
      }
      points++;
      if (!Exists(path_)) {
        continue;
      }
      // The replay dies too, in every way, before one is let through.
      for (uint64_t replay_at = 1; replay_at < 40; replay_at += 6) {
        child = fork();
        if (child == 0) {
          FaultyKernel kernel;
          kernel.decide = [&](Call, size_t len) -> int64_t {
            return len > 1 ? static_cast<int64_t>(len / 2 + 1) : 0;
          };
          kernel.after = [&](Call, int64_t) {
            if (kernel.calls() == replay_at) {
              kill(getpid(), SIGKILL);
            }
          };
          _exit(bufio_journal_replay(path_.c_str(), nullptr, nullptr) != 0);
        }
        ASSERT_EQ(waitpid(child, &status, 0), child);
        ASSERT_TRUE(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
      }
      // By another name every other time: the note on the file leads there.
      std::string name = path_;
      if (at % 2 == 0 && HasNote(path_)) {
        name += ".link";
        ASSERT_EQ(link(path_.c_str(), name.c_str()), 0);
        by_other_name++;
      }
      ASSERT_EQ(bufio_journal_replay(name.c_str(), nullptr, nullptr), 0);
      unlink((path_ + ".link").c_str());
      size_t offset = 0;
      uint64_t count = 0;
      ASSERT_TRUE(Count(ReadFile(path_), &offset, &count));
      ASSERT_GE(count, progress_->acknowledged);
      ASSERT_LE(count, progress_->acknowledged + 1);
    }
  }
  printf("%" PRIu64 " places to die, %" PRIu64
         " files replayed by another name\n",
         points, by_other_name);
  EXPECT_GT(points, 50u);
  if (HasNotes()) {
    EXPECT_GT(by_other_name, 10u);
  }
}

}  // namespace
