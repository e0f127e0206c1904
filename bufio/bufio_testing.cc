// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/bufio_testing.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>

#include "gtest/gtest.h"

namespace bufio_testing {
namespace {

FaultyKernel *current = nullptr;

// Longer than anything takes that does not hang.
constexpr time_t kPatienceSeconds = 15;

const bufio_system_t &Kernel() {
  return bufio_system_kernel;
}

// A call that transfers nothing.
template <typename Function>
int Plain(Call call, Function function) {
  int64_t fate = current->Decide(call, 0);
  return static_cast<int>(
      current->Done(call, fate < 0 ? fate : int64_t{function()}));
}

// A call that transfers up to `len` bytes.
template <typename Function>
int64_t Transfer(Call call, size_t len, Function function) {
  int64_t fate = current->Decide(call, len);
  if (fate > 0) {
    len = std::min(len, static_cast<size_t>(fate));
  }
  return current->Done(call, fate < 0 ? fate : function(len));
}

int FakeOpen(const char *path, int flags, unsigned int mode) {
  return Plain(Call::kOpen, [=] { return Kernel().open(path, flags, mode); });
}

int FakeOpenAt(int folder, const char *name, int flags, unsigned int mode) {
  return Plain(Call::kOpen,
               [=] { return Kernel().open_at(folder, name, flags, mode); });
}

int FakeClose(int descriptor) {
  // Linux closes whatever it returns.
  int64_t fate = current->Decide(Call::kClose, 0);
  int result = Kernel().close(descriptor);
  return static_cast<int>(
      current->Done(Call::kClose, fate < 0 ? fate : int64_t{result}));
}

int64_t FakeRead(int descriptor, void *bytes, size_t len) {
  return Transfer(Call::kRead, len, [=](size_t count) {
    return Kernel().read(descriptor, bytes, count);
  });
}

int64_t FakeWrite(int descriptor, const void *bytes, size_t len) {
  return Transfer(Call::kWrite, len, [=](size_t count) {
    return Kernel().write(descriptor, bytes, count);
  });
}

int64_t FakeWriteNow(int descriptor, const void *bytes, size_t len) {
  return Transfer(Call::kWrite, len, [=](size_t count) {
    return Kernel().write_now(descriptor, bytes, count);
  });
}

int64_t FakeWriteVector(int descriptor, const struct iovec *parts, int count) {
  size_t total = 0;
  for (int i = 0; i < count; i++) {
    total += parts[i].iov_len;
  }
  return Transfer(Call::kWriteVector, total, [=](size_t len) {
    std::vector<struct iovec> cut;
    for (int i = 0; i < count && len > 0; i++) {
      cut.push_back({parts[i].iov_base, std::min(len, parts[i].iov_len)});
      len -= cut.back().iov_len;
    }
    return Kernel().write_vector(descriptor, cut.data(),
                                 static_cast<int>(cut.size()));
  });
}

int64_t FakeReadAt(int descriptor, void *bytes, size_t len, uint64_t offset) {
  return Transfer(Call::kReadAt, len, [=](size_t count) {
    return Kernel().read_at(descriptor, bytes, count, offset);
  });
}

int64_t FakeWriteAt(int descriptor, const void *bytes, size_t len,
                    uint64_t offset) {
  return Transfer(Call::kWriteAt, len, [=](size_t count) {
    return Kernel().write_at(descriptor, bytes, count, offset);
  });
}

int64_t FakeSeek(int descriptor, int64_t offset, int whence) {
  int64_t fate = current->Decide(Call::kSeek, 0);
  return current->Done(
      Call::kSeek, fate < 0 ? fate : Kernel().seek(descriptor, offset, whence));
}

int FakeStat(int descriptor, struct stat *out_stat) {
  return Plain(Call::kStat,
               [=] { return Kernel().stat(descriptor, out_stat); });
}

int FakeStatAt(int folder, const char *name, int flags, struct stat *out_stat) {
  return Plain(Call::kStat,
               [=] { return Kernel().stat_at(folder, name, flags, out_stat); });
}

int FakePathOf(int descriptor, char *path, size_t size_bytes) {
  return Plain(Call::kPathOf,
               [=] { return Kernel().path_of(descriptor, path, size_bytes); });
}

int FakeFileSystem(int descriptor, int64_t *out_magic) {
  return Plain(Call::kFileSystem,
               [=] { return Kernel().file_system(descriptor, out_magic); });
}

int FakeWait(int descriptor, short events) {
  return Plain(Call::kWait, [=] { return Kernel().wait(descriptor, events); });
}

int FakeFlags(int descriptor) {
  return Plain(Call::kFlags, [=] { return Kernel().flags(descriptor); });
}

int FakeSetFlags(int descriptor, int flags) {
  return Plain(Call::kSetFlags,
               [=] { return Kernel().set_flags(descriptor, flags); });
}

int FakeSync(int descriptor) {
  return Plain(Call::kSync, [=] { return Kernel().sync(descriptor); });
}

int FakeSyncData(int descriptor) {
  return Plain(Call::kSyncData, [=] { return Kernel().sync_data(descriptor); });
}

int FakeSetMode(int descriptor, unsigned int mode) {
  return Plain(Call::kSetMode,
               [=] { return Kernel().set_mode(descriptor, mode); });
}

int FakeTruncate(int descriptor, uint64_t size_bytes) {
  return Plain(Call::kTruncate,
               [=] { return Kernel().truncate(descriptor, size_bytes); });
}

int FakeAllocate(int descriptor, uint64_t offset, uint64_t len) {
  return Plain(Call::kAllocate,
               [=] { return Kernel().allocate(descriptor, offset, len); });
}

int FakeLock(int descriptor, int operation) {
  return Plain(Call::kLock,
               [=] { return Kernel().lock(descriptor, operation); });
}

int FakeBirth(int descriptor, uint64_t *out_birth) {
  return Plain(Call::kBirth,
               [=] { return Kernel().birth(descriptor, out_birth); });
}

int FakeSetNote(int target, int side) {
  return Plain(Call::kSetNote, [=] { return Kernel().set_note(target, side); });
}

int FakeGetNote(const char *path, char *name, size_t size_bytes) {
  return Plain(Call::kGetNote,
               [=] { return Kernel().get_note(path, name, size_bytes); });
}

int FakeUnlink(const char *path) {
  return Plain(Call::kUnlink, [=] { return Kernel().unlink(path); });
}

int FakeUnlinkAt(int folder, const char *name) {
  return Plain(Call::kUnlink, [=] { return Kernel().unlink_at(folder, name); });
}

int FakeRename(const char *from, const char *to) {
  return Plain(Call::kRename, [=] { return Kernel().rename(from, to); });
}

int FakeLink(int descriptor, const char *path) {
  return Plain(Call::kLink, [=] { return Kernel().link(descriptor, path); });
}

void *FakeMap(void *address, size_t len, int protection, int flags,
              int descriptor, uint64_t offset, int *out_status) {
  int64_t fate = current->Decide(Call::kMap, 0);
  void *memory = nullptr;
  if (fate < 0) {
    *out_status = static_cast<int>(fate);
  } else {
    memory = Kernel().map(address, len, protection, flags, descriptor, offset,
                          out_status);
  }
  current->Done(Call::kMap, *out_status);
  return memory;
}

int FakeUnmap(void *address, size_t len) {
  // Never refused: the address space would be lost to the test.
  return Kernel().unmap(address, len);
}

int FakeAdvise(void *address, size_t len, int advice) {
  return Plain(Call::kAdvise,
               [=] { return Kernel().advise(address, len, advice); });
}

const bufio_system_t fake_system = {
    FakeOpen,     FakeOpenAt,      FakeClose,    FakeRead,       FakeWrite,
    FakeWriteNow, FakeWriteVector, FakeReadAt,   FakeWriteAt,    FakeSeek,
    FakeStat,     FakeStatAt,      FakePathOf,   FakeFileSystem, FakeWait,
    FakeFlags,    FakeSetFlags,    FakeSync,     FakeSyncData,   FakeSetMode,
    FakeTruncate, FakeAllocate,    FakeLock,     FakeBirth,      FakeSetNote,
    FakeGetNote,  FakeUnlink,      FakeUnlinkAt, FakeRename,     FakeLink,
    FakeMap,      FakeUnmap,       FakeAdvise,
};

}  // namespace

const char *NameOf(Call call) {
  static const char *const names[] = {
      "open",     "close",     "read",  "write",     "write_vector", "read_at",
      "write_at", "seek",      "stat",  "path_of",   "file_system",  "wait",
      "flags",    "set_flags", "sync",  "sync_data", "set_mode",     "truncate",
      "allocate", "lock",      "birth", "set_note",  "get_note",     "unlink",
      "rename",   "link",      "map",   "unmap",     "advise"};
  return names[static_cast<size_t>(call)];
}

const std::vector<int> &PlausibleErrors(Call call) {
  static const std::vector<int> reading = {EINTR, EIO, EISDIR, ECONNRESET,
                                           EAGAIN};
  static const std::vector<int> writing = {EINTR, ENOSPC, EIO,   EDQUOT,
                                           EFBIG, EPIPE,  EAGAIN};
  static const std::vector<int> opening = {EINTR,  EACCES, EMFILE, ENFILE,
                                           ENOSPC, ENOMEM, EROFS};
  static const std::vector<int> syncing = {EINTR, EIO, ENOSPC, EDQUOT};
  static const std::vector<int> naming = {EACCES, EIO, ENOSPC, EROFS};
  static const std::vector<int> mapping = {ENOMEM, EAGAIN, ENODEV};
  static const std::vector<int> plain = {EIO};
  switch (call) {
    case Call::kRead:
    case Call::kReadAt:
      return reading;
    case Call::kWrite:
    case Call::kWriteVector:
    case Call::kWriteAt:
    case Call::kAllocate:
    case Call::kTruncate:
      return writing;
    case Call::kOpen:
      return opening;
    case Call::kSync:
    case Call::kSyncData:
      return syncing;
    case Call::kUnlink:
    case Call::kRename:
    case Call::kLink:
      return naming;
    case Call::kMap:
      return mapping;
    default:
      return plain;
  }
}

FaultyKernel::FaultyKernel() {
  EXPECT_EQ(current, nullptr);
  current = this;
  bufio_system = &fake_system;
}

FaultyKernel::~FaultyKernel() {
  bufio_system = &bufio_system_kernel;
  current = nullptr;
}

int64_t FaultyKernel::Decide(Call call, size_t len) {
  calls_++;
  counts_[static_cast<size_t>(call)]++;
  return decide ? decide(call, len) : 0;
}

int64_t FaultyKernel::Done(Call call, int64_t result) {
  if (after) {
    after(call, result);
  }
  return result;
}

uint64_t Seed() {
  const char *text = getenv("BUFIO_TEST_SEED");
  return text != nullptr ? strtoull(text, nullptr, 0) : 1;
}

std::string TempPath(const std::string &name) {
  static int serial = 0;
  std::string path = testing::TempDir() + "/bufio." + std::to_string(getpid()) +
                     "." + std::to_string(serial++) + "." + name;
  unlink(path.c_str());
  return path;
}

std::string ReadFile(const std::string &path, uint64_t offset) {
  int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  std::string bytes = ReadDescriptor(descriptor, offset);
  close(descriptor);
  return bytes;
}

void WriteFile(const std::string &path, const std::string &bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

bool Exists(const std::string &path) {
  return access(path.c_str(), F_OK) == 0;
}

bool HasNotes() {
  std::string path = TempPath("notes");
  WriteFile(path, "");
  bool has = setxattr(path.c_str(), "user.bufio.test", "", 0, 0) == 0;
  unlink(path.c_str());
  return has;
}

std::string ReadDescriptor(int descriptor, uint64_t offset) {
  std::string bytes;
  std::vector<char> piece(1 << 16);
  for (;;) {
    ssize_t count = pread(descriptor, piece.data(), piece.size(),
                          static_cast<off_t>(offset));
    if (count <= 0) {
      return bytes;
    }
    bytes.append(piece.data(), static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
}

Terminal::Terminal() : user_(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)) {
  EXPECT_GE(user_, 0);
  EXPECT_EQ(grantpt(user_), 0);
  EXPECT_EQ(unlockpt(user_), 0);
  char name[64] = "";
  EXPECT_EQ(ptsname_r(user_, name, sizeof(name)), 0);
  name_ = name;
  struct termios mode = {};
  EXPECT_EQ(tcgetattr(user_, &mode), 0);
  cfmakeraw(&mode);
  EXPECT_EQ(tcsetattr(user_, TCSANOW, &mode), 0);
}

Terminal::~Terminal() {
  close(user_);
}

int Terminal::Open() const {
  int descriptor = open(name_.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC);
  EXPECT_GE(descriptor, 0);
  return descriptor;
}

std::string RandomText(std::mt19937_64 *random, size_t len) {
  std::string text;
  while (text.size() < len) {
    uint64_t dice = (*random)();
    size_t line = (dice >> 8) % (dice % 64 == 0 ? 20000 : 200);
    for (size_t i = 0; i < line; i++) {
      text += static_cast<char>('a' + (dice >> 16 ^ i) % 26);
    }
    text += dice % 5 == 0 ? "\r\n" : "\n";
  }
  return text;
}

std::string Pattern(uint64_t start, size_t len) {
  std::string bytes(len, '\0');
  for (size_t i = 0; i < len; i++) {
    uint64_t at = start + i;
    bytes[i] = static_cast<char>((at * 0x9e3779b97f4a7c15u) >> 56);
  }
  return bytes;
}

pid_t StartChild(const std::function<void()> &body) {
  pid_t child = fork();
  if (child == 0) {
    struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    body();
    _exit(101);
  }
  EXPECT_GT(child, 0);
  return child;
}

bool IsReadable(int descriptor) {
  // Not poll(2), which some tests have in place of libc's.
  struct pollfd request = {descriptor, POLLIN, 0};
  const struct timespec patience = {kPatienceSeconds, 0};
  return ppoll(&request, 1, &patience, nullptr) > 0;
}

int StatusOf(pid_t child) {
  // Readable when the child has ended.
  int handle = static_cast<int>(syscall(SYS_pidfd_open, child, 0));
  if (handle >= 0 && !IsReadable(handle)) {
    ADD_FAILURE() << "a child does not end, and is killed";
    kill(child, SIGKILL);
  }
  close(handle);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status;
}

namespace {

struct Cancelled {
  std::function<void()> run;
  std::atomic<bool> is_there{false};
  std::atomic<bool> is_cancelled{false};
};

void *RunCancelled(void *cancelled) {
  static_cast<Cancelled *>(cancelled)->run();
  return nullptr;
}

}  // namespace

bool IsCancelledAt(
    const std::function<void(const std::function<void()> &place)> &body) {
  Cancelled cancelled;
  auto place = [&cancelled] {
    cancelled.is_there = true;
    while (!cancelled.is_cancelled) {
      sched_yield();
    }
    pthread_testcancel();
  };
  cancelled.run = [&] {
    body(place);
  };
  pthread_t thread;
  EXPECT_EQ(pthread_create(&thread, nullptr, RunCancelled, &cancelled), 0);
  while (!cancelled.is_there) {
    sched_yield();
  }
  EXPECT_EQ(pthread_cancel(thread), 0);
  cancelled.is_cancelled = true;
  void *result = nullptr;
  EXPECT_EQ(pthread_join(thread, &result), 0);
  return result == PTHREAD_CANCELED;
}

}  // namespace bufio_testing
