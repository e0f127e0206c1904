// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What does reading and writing cost a program, next to stdio and to the bare
// system calls? `bazel run //bufio:benchmark` prints a table.
//
// Each row's contenders run in turn, round after round, in one process, on a
// file that is in the page cache; a cell is the median of the rounds, in CPU
// time (user and system) of the work alone. Ratios compare medians of one run.
//
//   --dir=/tmp      where files are (and of what kind the file system is)
//   --mib=256       size of files; the copied one is four times as large
//   --rounds=7
//   --only=lines    one of lines, records, bytes, numbers, copy,
//                   commit
//   --smoke         a few KiB, one round: that it runs

#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "bufio/bufio_benchmark.h"
#include "bufio/reader.h"
#include "bufio/scan.h"
#include "bufio/writer.h"

namespace bufio_benchmark {
namespace {

// Text of lines of 16 to 100 bytes, 58 in the mean.
void MakeText(const std::string &path, size_t bytes) {
  std::mt19937_64 random(1);
  std::string text;
  FILE *file = fopen(path.c_str(), "w");
  if (file == nullptr) {
    Die(path.c_str());
  }
  size_t done = 0;
  while (done < bytes) {
    text.clear();
    while (text.size() < (1 << 20)) {
      size_t len = 16 + random() % 85;
      text.append(len, static_cast<char>('a' + len % 26));
      text += '\n';
    }
    fwrite(text.data(), 1, text.size(), file);
    done += text.size();
  }
  fclose(file);
}

double CopyByCp(const std::string &from, const std::string &to) {
  struct rusage before, after;
  getrusage(RUSAGE_CHILDREN, &before);
  pid_t child = fork();
  if (child == 0) {
    // No reflink: in this program that means no copy_file_range either.
    execlp("cp", "cp", "--reflink=never", from.c_str(), to.c_str(), nullptr);
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  getrusage(RUSAGE_CHILDREN, &after);
  if (status != 0) {
    Die("cp");
  }
  auto seconds = [](const struct timeval &time) {
    return static_cast<double>(time.tv_sec) +
           static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(after.ru_utime) + seconds(after.ru_stime) -
         seconds(before.ru_utime) - seconds(before.ru_stime);
}

double CopyByBufio(const std::string &from, const std::string &to) {
  return Timed([&] {
    bufio_reader_t reader;
    bufio_writer_t writer;
    int status = bufio_reader_open(&reader, from.c_str(), nullptr);
    status |= bufio_writer_open(&writer, to.c_str(), nullptr);
    status |= bufio_reader_copy(&reader, &writer);
    status |= bufio_writer_close(&writer);
    bufio_reader_close(&reader);
    if (status != 0) {
      Die("bufio_reader_copy");
    }
  });
}

void Copy(const std::string &path, double bytes) {
  std::string to = Path("copy");
  Compare("Copy of a file", "GiB/s", bytes / (1 << 30),
          {
              {"cp --reflink=never",
               [&] {
                 unlink(to.c_str());
                 return CopyByCp(path, to);
               }},
              {"bufio_reader_copy",
               [&] {
                 unlink(to.c_str());
                 return CopyByBufio(path, to);
               }},
          },
          {{"bufio / cp", 1, 0, 1 / 1.05}});
  unlink(to.c_str());
}

bool Wants(const char *name) {
  return flags.only.empty() || flags.only == name;
}

void ParseFlags(int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    std::string flag = argv[i];
    auto value = [&](const char *name) -> const char * {
      size_t len = strlen(name);
      return flag.compare(0, len, name) == 0 ? flag.c_str() + len : nullptr;
    };
    if (const char *text = value("--dir=")) {
      flags.dir = text;
    } else if (const char *mib = value("--mib=")) {
      flags.mib = strtoul(mib, nullptr, 0);
    } else if (const char *rounds = value("--rounds=")) {
      flags.rounds = atoi(rounds);
    } else if (const char *only = value("--only=")) {
      flags.only = only;
    } else if (flag == "--smoke") {
      flags.smoke = true;
      flags.rounds = 1;
      const char *folder = getenv("TEST_TMPDIR");
      flags.dir = folder != nullptr ? folder : "/tmp";
    } else {
      fprintf(stderr, "unknown flag %s\n", argv[i]);
      exit(2);
    }
  }
}

}  // namespace
}  // namespace bufio_benchmark

int main(int argc, char **argv) {
  using namespace bufio_benchmark;
  ParseFlags(argc, argv);
  size_t bytes = flags.smoke ? 300000 : flags.mib << 20;
  std::string text = Path("text");
  std::string out = Path("out");
  MakeText(text, bytes);
  struct stat stat;
  ::stat(text.c_str(), &stat);
  auto text_bytes = static_cast<double>(stat.st_size);
  printf("%s, files of %zu MiB, %d rounds, scan level %d\n", flags.dir.c_str(),
         bytes >> 20, flags.rounds, static_cast<int>(bufio_scan_current()));
  if (Wants("lines")) {
    Lines(text, text_bytes);
  }
  if (Wants("records")) {
    Records(out, bytes);
  }
  if (Wants("bytes")) {
    Bytes(text, text_bytes, out, bytes);
  }
  if (Wants("numbers")) {
    Numbers(bytes / 16);
  }
  if (Wants("commit")) {
    Commit(out);
  }
  if (Wants("copy")) {
    unlink(text.c_str());
    MakeText(text, 4 * bytes);
    ::stat(text.c_str(), &stat);
    Copy(text, static_cast<double>(stat.st_size));
  }
  unlink(text.c_str());
  unlink(out.c_str());
  return sink == 1;
}
