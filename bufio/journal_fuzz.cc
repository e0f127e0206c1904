// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Fuzzes the replay of side files. Input: 1 byte of options, 2 bytes length of
// the file (whose bytes are a pattern), then the side file. By the options, the
// identity of the file and the checks are made right, so that the fuzzer gets
// behind them.
//
// Properties: no byte that the file has is changed; it becomes shorter only if
// the side file announced so; a refusal changes nothing; a second replay has
// nothing to do.

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "bufio/io_system.h"
#include "bufio/journal.h"
#include "bufio/journal_internal.h"

namespace {

#define CHECK(condition) \
  do {                   \
    if (!(condition)) {  \
      abort();           \
    }                    \
  } while (0)

std::string Folder() {
  const char *folder = getenv("TEST_TMPDIR");
  return folder != nullptr ? folder : "/tmp";
}

void Write(const std::string &path, const std::string &bytes) {
  int descriptor =
      open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  CHECK(descriptor >= 0);
  CHECK(write(descriptor, bytes.data(), bytes.size()) ==
        static_cast<ssize_t>(bytes.size()));
  close(descriptor);
}

std::string Read(const std::string &path) {
  int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  CHECK(descriptor >= 0);
  std::string bytes(1 << 20, '\0');
  ssize_t count = read(descriptor, &bytes[0], bytes.size());
  CHECK(count >= 0);
  bytes.resize(static_cast<size_t>(count));
  close(descriptor);
  return bytes;
}

std::string Pattern(size_t len) {
  std::string bytes(len, '\0');
  for (size_t i = 0; i < len; i++) {
    bytes[i] = static_cast<char>(i * 0x9e3779b97f4a7c15u >> 56);
  }
  return bytes;
}

// Makes right what a fuzzer cannot guess.
void MakeRight(const std::string &path, std::string *side, unsigned options) {
  struct stat stat = {};
  CHECK(::stat(path.c_str(), &stat) == 0);
  bufio_journal_header_t header;
  side->resize(std::max(side->size(), sizeof(header)));
  memcpy(&header, side->data(), sizeof(header));
  header.magic = BUFIO_JOURNAL_MAGIC;
  header.version = BUFIO_JOURNAL_VERSION;
  header.header_bytes = BUFIO_JOURNAL_HEADER_BYTES;
  header.device = stat.st_dev;
  header.inode = stat.st_ino;
  int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  CHECK(bufio_system_kernel.birth(descriptor, &header.birth) == 0);
  close(descriptor);
  header.ring_bytes = (options & 2) != 0 ? 256 : header.ring_bytes % 4096;
  header.check = bufio_journal_header_check(&header);
  // Near the end of the file, where it matters.
  auto near = [&](uint64_t word) {
    auto size = static_cast<uint64_t>(stat.st_size);
    uint64_t offset = size + word % 1024;
    return offset < 512 ? offset : offset - 512;
  };
  if ((options & 4) != 0) {
    uint64_t written = near(header.written);
    header.written = bufio_journal_word(&header, written);
    header.committed = (options & 8) != 0 ? written + header.committed % 300
                                          : near(header.committed);
  }
  if ((options & 16) != 0 && header.direct_end != 0) {
    header.direct_end = bufio_journal_word(&header, near(header.direct_end));
  }
  if ((options & 64) != 0) {
    header.finished = bufio_journal_mark(&header);
  }
  memcpy(&(*side)[0], &header, sizeof(header));
  side->resize(BUFIO_JOURNAL_HEADER_BYTES + header.ring_bytes);
  if ((options & 32) != 0) {
    // The ring has what the file has.
    for (uint64_t i = 0; i < header.ring_bytes; i++) {
      uint64_t end = static_cast<uint64_t>(stat.st_size) + 128;
      uint64_t at = end - 1 - i;
      if (at < end) {
        (*side)[BUFIO_JOURNAL_HEADER_BYTES + at % header.ring_bytes] =
            static_cast<char>(at * 0x9e3779b97f4a7c15u >> 56);
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const std::string *path =
      new std::string(Folder() + "/journal_fuzz." + std::to_string(getpid()));
  static const std::string *side_path = new std::string(*path + ".side");
  if (size < 3) {
    return 0;
  }
  unsigned options = data[0];
  std::string before = Pattern((data[1] | size_t{data[2]} << 8) % 5000);
  std::string side(reinterpret_cast<const char *>(data + 3), size - 3);
  Write(*path, before);
  if ((options & 1) != 0) {
    MakeRight(*path, &side, options);
  }
  Write(*side_path, side);
  bufio_journal_result_t result = {};
  int status = bufio_journal_replay(path->c_str(), side_path->c_str(), &result);
  std::string after = Read(*path);
  size_t common = std::min(before.size(), after.size());
  CHECK(after.compare(0, common, before, 0, common) == 0);
  if ((options & 65) == 65) {
    // Finished: whatever else it says, nothing is to be done.
    CHECK(status == 0 && after == before);
  }
  if (status != 0) {
    CHECK(status == -EPROTO);
    CHECK(after == before);
    CHECK(Read(*side_path) == side);
  } else {
    CHECK(access(side_path->c_str(), F_OK) != 0);
    CHECK(after.size() ==
          before.size() + result.appended_bytes - result.removed_bytes);
    CHECK(result.removed_bytes == 0 || result.appended_bytes == 0);
    if (result.removed_bytes != 0) {
      CHECK((options & 1) != 0);
    }
    CHECK(bufio_journal_replay(path->c_str(), side_path->c_str(), &result) ==
          0);
    CHECK(Read(*path) == after);
  }
  unlink(side_path->c_str());
  unlink(path->c_str());
  return 0;
}
