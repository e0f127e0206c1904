// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the tests of bufio share: a kernel that fails on demand, files, text.

#ifndef MY_ALLOC_BUFIO_BUFIO_TESTING_H_
#define MY_ALLOC_BUFIO_BUFIO_TESTING_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "bufio/bufio.h"
#include "bufio/io_system.h"

namespace bufio_testing {

// The calls of the table, by name.
enum class Call {
  kOpen,
  kClose,
  kRead,
  kWrite,
  kWriteVector,
  kReadAt,
  kWriteAt,
  kSeek,
  kStat,
  kPathOf,
  kFileSystem,
  kWait,
  kFlags,
  kSetFlags,
  kSync,
  kSyncData,
  kSetMode,
  kTruncate,
  kAllocate,
  kLock,
  kBirth,
  kSetNote,
  kGetNote,
  kUnlink,
  kRename,
  kLink,
  kMap,
  kUnmap,
  kAdvise,
};

const char *NameOf(Call call);

// Errnos that the man page of a call gives it.
const std::vector<int> &PlausibleErrors(Call call);

// While one exists, bufio's calls go through it. One thread.
class FaultyKernel {
 public:
  FaultyKernel();
  ~FaultyKernel();
  FaultyKernel(const FaultyKernel &) = delete;
  FaultyKernel &operator=(const FaultyKernel &) = delete;

  // What becomes of a call that would transfer up to `len` bytes (0 for those
  // that transfer none): 0 as the kernel does, negative: that errno, positive:
  // at most so many bytes.
  std::function<int64_t(Call call, size_t len)> decide;
  // Called after it, with the result.
  std::function<void(Call call, int64_t result)> after;

  uint64_t calls() const {
    return calls_;
  }
  uint64_t count(Call call) const {
    return counts_[static_cast<size_t>(call)];
  }

  int64_t Decide(Call call, size_t len);
  int64_t Done(Call call, int64_t result);

 private:
  uint64_t calls_ = 0;
  uint64_t counts_[32] = {};
};

// BUFIO_TEST_SEED, or 1; printed by tests that use it.
uint64_t Seed();

// A name in the test's scratch folder that no file has.
std::string TempPath(const std::string &name);

// What a file has from `offset` on; nothing if there is none.
std::string ReadFile(const std::string &path, uint64_t offset = 0);
void WriteFile(const std::string &path, const std::string &bytes);
bool Exists(const std::string &path);

// Whether files in the scratch folder can have notes of their side files, which
// are extended attributes.
bool HasNotes();

// The same of a descriptor, wherever it stands.
std::string ReadDescriptor(int descriptor, uint64_t offset = 0);

// A terminal in raw mode, whose user is the test.
class Terminal {
 public:
  Terminal();
  ~Terminal();
  Terminal(const Terminal &) = delete;
  Terminal &operator=(const Terminal &) = delete;

  // The side of the program.
  const std::string &name() const {
    return name_;
  }
  int Open() const;

  // The side of the user.
  int user() const {
    return user_;
  }

 private:
  int user_;
  std::string name_;
};

// Text of about `len` bytes: lines of 0 to 200 bytes, some of thousands, some
// with "\r\n".
std::string RandomText(std::mt19937_64 *random, size_t len);

// Bytes that tell where they are from.
std::string Pattern(uint64_t start, size_t len);

// A child that runs `body` and dumps no core; it exits with 101 if `body`
// returns, unless that exits itself.
pid_t StartChild(const std::function<void()> &body);

// The status of a child that ends, as waitpid(2) says it. One that does not end
// in a time that is long for anything is killed, and the test fails.
int StatusOf(pid_t child);

// Waits until there is something to read; false after that time.
bool IsReadable(int descriptor);

inline int RunChild(const std::function<void()> &body) {
  return StatusOf(StartChild(body));
}

// Runs `body` in a thread that somebody cancels while it is inside of the
// function that `body` gets: there it ends, if it can be cancelled there.
// Returns whether it did.
bool IsCancelledAt(
    const std::function<void(const std::function<void()> &place)> &body);

inline std::string ToString(bufio_slice_t slice) {
  return std::string(reinterpret_cast<const char *>(slice.data), slice.len);
}

}  // namespace bufio_testing

#endif  // MY_ALLOC_BUFIO_BUFIO_TESTING_H_
