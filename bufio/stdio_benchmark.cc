// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What does reading and writing cost a program, next to stdio and to the bare
// system calls? `bazel run -c opt //bufio:benchmark` prints a table.
//
// Each row's contenders run in turn, round after round, in one process, on a
// file that is in the page cache; a cell is the median of the rounds, in CPU
// time (user and system) of the work alone. Ratios compare medians of one run.
//
//   --dir=/tmp      where files are (and of what kind the file system is)
//   --mib=256       size of files; the copied one is four times as large
//   --rounds=7
//   --only=lines    one of lines, records, bytes, copy, commit
//   --smoke         a few KiB, one round: that it runs

#include <fcntl.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bufio/group_commit.h"
#include "bufio/reader.h"
#include "bufio/scan.h"
#include "bufio/writer.h"

namespace {

struct Flags {
  std::string dir = "/tmp";
  std::string only;
  size_t mib = 256;
  int rounds = 7;
  bool smoke = false;
};

Flags flags;
uint64_t sink;  // What loops computed, so that they are not removed.

constexpr size_t kStdioBuffer = 65536;
char stdio_buffer[kStdioBuffer];

[[noreturn]] void Die(const char *what) {
  perror(what);
  exit(1);
}

double CpuSeconds(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) +
         static_cast<double>(now.tv_nsec) * 1e-9;
}

std::string Path(const char *name) {
  return flags.dir + "/bufio_benchmark." + std::to_string(getpid()) + "." +
         name;
}

// ---- the table ----

struct Contender {
  std::string name;
  std::function<double()> run;  // Returns CPU seconds.
  std::vector<double> seconds = {};

  double Median() {
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  }
};

// A ratio that has to be reached: `faster` against `slower` as speeds.
struct Bar {
  std::string text;
  size_t faster;
  size_t slower;
  double at_least;
};

void Compare(const char *title, const char *unit, double amount,
             std::vector<Contender> contenders, const std::vector<Bar> &bars) {
  for (int round = 0; round < flags.rounds; round++) {
    for (Contender &contender : contenders) {
      contender.seconds.push_back(contender.run());
    }
  }
  printf("\n%s\n", title);
  for (Contender &contender : contenders) {
    double median = contender.Median();
    bool is_rate = strcmp(unit, "GiB/s") == 0;
    printf("  %-52s %9.2f %s   (%.2f to %.2f)\n", contender.name.c_str(),
           is_rate ? amount / median : median / amount * 1e9, unit,
           is_rate ? amount / contender.seconds.back()
                   : contender.seconds.front() / amount * 1e9,
           is_rate ? amount / contender.seconds.front()
                   : contender.seconds.back() / amount * 1e9);
  }
  for (const Bar &bar : bars) {
    double ratio =
        contenders[bar.slower].Median() / contenders[bar.faster].Median();
    printf("  %-4s %s: %.2f (bar %.2f)\n", ratio >= bar.at_least ? "ok" : "LOW",
           bar.text.c_str(), ratio, bar.at_least);
  }
  fflush(stdout);
}

double Timed(const std::function<void()> &work) {
  double start = CpuSeconds(CLOCK_PROCESS_CPUTIME_ID);
  work();
  return CpuSeconds(CLOCK_PROCESS_CPUTIME_ID) - start;
}

// ---- lines ----

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

void ReadPlain(const std::string &path) {
  uint64_t sum = 0;
  static char buffer[131072];
  int descriptor = open(path.c_str(), O_RDONLY);
  ssize_t count;
  while ((count = read(descriptor, buffer, sizeof(buffer))) > 0) {
    sum += static_cast<uint64_t>(count);
  }
  close(descriptor);
  sink += sum;
}

// The loop that somebody writes who knows how: read(2) and vector compares,
// the unfinished line moved to the front.
#if defined(__x86_64__)
__attribute__((target("avx2,bmi")))
#endif
void ReadByHand(const std::string &path) {
  uint64_t sum = 0;
  constexpr size_t kRead = 131072;
  static unsigned char buffer[2 * kRead + 64];
  int descriptor = open(path.c_str(), O_RDONLY);
  size_t kept = 0;
  ssize_t count;
  while ((count = read(descriptor, buffer + kept, kRead)) > 0) {
    const unsigned char *line = buffer;
    const unsigned char *end = buffer + kept + count;
#if defined(__x86_64__)
    const __m256i pattern = _mm256_set1_epi8('\n');
    for (const unsigned char *at = buffer; at < end; at += 32) {
      __m256i part = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at));
      auto mask = static_cast<uint32_t>(
          _mm256_movemask_epi8(_mm256_cmpeq_epi8(part, pattern)));
      if (end - at < 32) {
        mask &= (1u << (end - at)) - 1;
      }
      while (mask != 0) {
        const unsigned char *stop = at + __builtin_ctz(mask);
        sum += static_cast<uint64_t>(stop - line) + *line;
        line = stop + 1;
        mask &= mask - 1;
      }
    }
#else
    const void *stop;
    while ((stop = memchr(line, '\n', static_cast<size_t>(end - line)))) {
      auto place = static_cast<const unsigned char *>(stop);
      sum += static_cast<uint64_t>(place - line) + *line;
      line = place + 1;
    }
#endif
    kept = static_cast<size_t>(end - line);
    memmove(buffer, line, kept);
  }
  close(descriptor);
  sink += sum;
}

void ReadLines(const std::string &path) {
  uint64_t sum = 0;
  bufio_reader_t reader;
  if (bufio_reader_open(&reader, path.c_str(), nullptr) != 0) {
    Die("bufio_reader_open");
  }
  bufio_slice_t line;
  while (bufio_reader_next_line(&reader, &line) > 0) {
    sum += line.len + *line.data;
  }
  bufio_reader_close(&reader);
  sink += sum;
}

void ReadGetline(const std::string &path, bool tuned) {
  uint64_t sum = 0;
  FILE *file = fopen(path.c_str(), "r");
  if (tuned) {
    setvbuf(file, stdio_buffer, _IOFBF, kStdioBuffer);
    __fsetlocking(file, FSETLOCKING_BYCALLER);
  }
  char *line = nullptr;
  size_t capacity = 0;
  ssize_t len;
  while ((len = getline(&line, &capacity, file)) >= 0) {
    sum += static_cast<uint64_t>(len) + static_cast<unsigned char>(*line);
  }
  free(line);
  fclose(file);
  sink += sum;
}

void ReadFgets(const std::string &path) {
  uint64_t sum = 0;
  FILE *file = fopen(path.c_str(), "r");
  char line[4096];
  while (fgets(line, sizeof(line), file) != nullptr) {
    sum += static_cast<unsigned char>(*line);
  }
  fclose(file);
  sink += sum;
}

void Lines(const std::string &path, double bytes) {
  Compare("Lines of 16 to 100 bytes", "GiB/s", bytes / (1 << 30),
          {
              {"read(2) of 128 KiB, no lines",
               [&] {
                 return Timed([&] { ReadPlain(path); });
               }},
              {"read(2) and AVX2 by hand",
               [&] {
                 return Timed([&] { ReadByHand(path); });
               }},
              {"bufio_reader_next_line",
               [&] {
                 return Timed([&] { ReadLines(path); });
               }},
              {"getline",
               [&] {
                 return Timed([&] { ReadGetline(path, false); });
               }},
              {"getline, no locks, 64 KiB",
               [&] {
                 return Timed([&] { ReadGetline(path, true); });
               }},
              {"fgets",
               [&] {
                 return Timed([&] { ReadFgets(path); });
               }},
          },
          {
              {"next_line / getline", 2, 3, 3.0},
              {"next_line / getline without locks, 64 KiB", 2, 4, 2.2},
              {"next_line / read(2)", 2, 0, 0.65},
              {"next_line / loop by hand", 2, 1, 0.9},
          });
}

// ---- records ----

struct Record {
  const char *bytes;
  size_t len;
};

std::vector<Record> MakeRecords() {
  static std::string *source = new std::string(1 << 18, 'r');
  std::mt19937_64 random(2);
  std::vector<Record> records;
  for (int i = 0; i < 1 << 16; i++) {
    records.push_back({source->data() + random() % (source->size() - 100),
                       16 + random() % 85});
  }
  return records;
}

// A file that is in the page cache is written over; nothing is allocated.
int OpenOver(const std::string &path) {
  int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (descriptor < 0) {
    Die(path.c_str());
  }
  return descriptor;
}

double WriteStdio(const std::string &path, const std::vector<Record> &records,
                  size_t count, bool tuned) {
  return Timed([&] {
    FILE *file = fdopen(OpenOver(path), "w");
    if (tuned) {
      setvbuf(file, stdio_buffer, _IOFBF, kStdioBuffer);
    }
    for (size_t i = 0; i < count; i++) {
      const Record &record = records[i & (records.size() - 1)];
      if (tuned) {
        fwrite_unlocked(record.bytes, 1, record.len, file);
      } else {
        fwrite(record.bytes, 1, record.len, file);
      }
    }
    fclose(file);
  });
}

void WriteAll(bufio_writer_t *writer, const std::vector<Record> &records,
              size_t count) {
  int status = 0;
  for (size_t i = 0; i < count; i++) {
    const Record &record = records[i & (records.size() - 1)];
    status |= bufio_writer_write(writer, record.bytes, record.len);
  }
  if ((status | bufio_writer_close(writer)) != 0) {
    Die("bufio_writer_write");
  }
}

double WriteOver(const std::string &path, const std::vector<Record> &records,
                 size_t count) {
  return Timed([&] {
    int descriptor = OpenOver(path);
    bufio_writer_t writer;
    if (bufio_writer_attach(&writer, descriptor, nullptr) != 0) {
      Die("bufio_writer_attach");
    }
    WriteAll(&writer, records, count);
    close(descriptor);
  });
}

double WriteNew(const std::string &path, const std::vector<Record> &records,
                size_t count, bufio_durability_t durability) {
  unlink(path.c_str());
  return Timed([&] {
    bufio_writer_t writer;
    bufio_writer_options_t options = {};
    options.durability = durability;
    if (bufio_writer_open(&writer, path.c_str(), &options) != 0) {
      Die("bufio_writer_open");
    }
    WriteAll(&writer, records, count);
  });
}

void Records(const std::string &path, size_t bytes) {
  std::vector<Record> records = MakeRecords();
  size_t count = bytes / 58;
  WriteStdio(path, records, count, true);
  Compare("Records of 16 to 100 bytes, over a file in the page cache",
          "ns/record", static_cast<double>(count),
          {
              {"fwrite",
               [&] {
                 return WriteStdio(path, records, count, false);
               }},
              {"fwrite_unlocked, 64 KiB",
               [&] {
                 return WriteStdio(path, records, count, true);
               }},
              {"bufio_writer_write",
               [&] {
                 return WriteOver(path, records, count);
               }},
          },
          {
              {"write / fwrite_unlocked, 64 KiB", 2, 1, 1.5},
              {"write / fwrite", 2, 0, 2.2},
          });
  Compare("The same into a new file", "ns/record", static_cast<double>(count),
          {
              {"bufio_writer_write, level none",
               [&] {
                 return WriteNew(path, records, count, BUFIO_DURABILITY_NONE);
               }},
              {"bufio_writer_write, level process",
               [&] {
                 return WriteNew(path, records, count,
                                 BUFIO_DURABILITY_PROCESS);
               }},
          },
          {{"level process / level none", 1, 0, 1 / 1.1}});
}

// ---- bytes ----

// Loops in functions of their own, so that nothing but the bytes is in memory.
void PutLoopStdio(FILE *file, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) {
    putc_unlocked(static_cast<unsigned char>(i), file);
  }
}

int PutLoopWriter(bufio_writer_t *writer, size_t bytes) {
  int status = 0;
  for (size_t i = 0; i < bytes; i++) {
    status |= bufio_writer_putc(writer, static_cast<unsigned char>(i));
  }
  return status;
}

int PutLoopPutter(bufio_writer_t *writer, size_t bytes) {
  bufio_putter_t putter = bufio_putter_begin(writer);
  for (size_t i = 0; i < bytes; i++) {
    bufio_putter_putc(&putter, static_cast<unsigned char>(i));
  }
  return bufio_putter_end(&putter);
}

// What no byte loop can beat: the same bytes handed over, unwritten.
double PutNothing(const std::string &path, size_t bytes) {
  static char buffer[131072];
  return Timed([&] {
    int descriptor = OpenOver(path);
    for (size_t done = 0; done < bytes; done += sizeof(buffer)) {
      if (write(descriptor, buffer, sizeof(buffer)) < 0) {
        Die("write");
      }
    }
    close(descriptor);
  });
}

// Room is reserved for many bytes at a time, and nothing is checked in between.
int PutLoopReserve(bufio_writer_t *writer, size_t bytes) {
  constexpr size_t kPiece = 4096;
  int status = 0;
  for (size_t i = 0; i < bytes;) {
    size_t end = bytes - i < kPiece ? bytes : i + kPiece;
    unsigned char *room = bufio_writer_reserve(writer, kPiece);
    if (room == nullptr) {
      return -1;
    }
    unsigned char *cursor = room;
    for (; i < end; i++) {
      *cursor++ = static_cast<unsigned char>(i);
    }
    status |= bufio_writer_commit(writer, static_cast<size_t>(cursor - room));
  }
  return status;
}

double PutStdio(const std::string &path, size_t bytes) {
  return Timed([&] {
    FILE *file = fdopen(OpenOver(path), "w");
    setvbuf(file, stdio_buffer, _IOFBF, kStdioBuffer);
    PutLoopStdio(file, bytes);
    fclose(file);
  });
}

double PutBufio(const std::string &path, size_t bytes,
                int (*loop)(bufio_writer_t *, size_t)) {
  return Timed([&] {
    int descriptor = OpenOver(path);
    bufio_writer_t writer;
    int status = bufio_writer_attach(&writer, descriptor, nullptr);
    status |= loop(&writer, bytes);
    if ((status | bufio_writer_close(&writer)) != 0) {
      Die("bufio_writer_putc");
    }
    close(descriptor);
  });
}

double GetStdio(const std::string &path) {
  return Timed([&] {
    FILE *file = fopen(path.c_str(), "r");
    setvbuf(file, stdio_buffer, _IOFBF, kStdioBuffer);
    int byte;
    uint64_t sum = 0;
    while ((byte = getc_unlocked(file)) != EOF) {
      sum += static_cast<uint64_t>(byte);
    }
    sink += sum;
    fclose(file);
  });
}

double GetBufio(const std::string &path, bool in_register) {
  return Timed([&] {
    bufio_reader_t reader;
    if (bufio_reader_open(&reader, path.c_str(), nullptr) != 0) {
      Die("bufio_reader_open");
    }
    int byte;
    uint64_t sum = 0;
    if (in_register) {
      bufio_getter_t getter = bufio_getter_begin(&reader);
      while ((byte = bufio_getter_getc(&getter)) >= 0) {
        sum += static_cast<uint64_t>(byte);
      }
      bufio_getter_end(&getter);
    } else {
      while ((byte = bufio_reader_getc(&reader)) >= 0) {
        sum += static_cast<uint64_t>(byte);
      }
    }
    sink += sum;
    bufio_reader_close(&reader);
  });
}

void Bytes(const std::string &text, double text_bytes, const std::string &path,
           size_t bytes) {
  Compare("Bytes written", "GiB/s", static_cast<double>(bytes) / (1 << 30),
          {
              {"write(2) of 128 KiB, no bytes put",
               [&] {
                 return PutNothing(path, bytes);
               }},
              {"putc_unlocked, 64 KiB",
               [&] {
                 return PutStdio(path, bytes);
               }},
              {"bufio_writer_putc",
               [&] {
                 return PutBufio(path, bytes, PutLoopWriter);
               }},
              {"bufio_putter_putc",
               [&] {
                 return PutBufio(path, bytes, PutLoopPutter);
               }},
              {"a byte loop between reserve and commit, 4 KiB",
               [&] {
                 return PutBufio(path, bytes, PutLoopReserve);
               }},
          },
          {
              {"putter / putc_unlocked", 3, 1, 3.0},
              {"reserve / putc_unlocked", 4, 1, 3.0},
          });
  Compare("Bytes read", "GiB/s", text_bytes / (1 << 30),
          {
              {"getc_unlocked, 64 KiB",
               [&] {
                 return GetStdio(text);
               }},
              {"bufio_reader_getc",
               [&] {
                 return GetBufio(text, false);
               }},
              {"bufio_getter_getc",
               [&] {
                 return GetBufio(text, true);
               }},
          },
          {{"getter / getc_unlocked", 2, 0, 1.4}});
}

// ---- copy ----

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

// ---- commit ----

double WallSecondsPerRecord(size_t records, const std::function<void()> &work) {
  double start = CpuSeconds(CLOCK_MONOTONIC);
  work();
  return (CpuSeconds(CLOCK_MONOTONIC) - start) / static_cast<double>(records);
}

double SyncEvery(const std::string &path, size_t records, uint64_t every) {
  return WallSecondsPerRecord(records, [&] {
    bufio_writer_t writer;
    bufio_writer_options_t options = {};
    options.durability = BUFIO_DURABILITY_POWER;
    options.sync_records = every;
    int status = bufio_writer_open(&writer, path.c_str(), &options);
    char record[58] = {};
    for (size_t i = 0; i < records; i++) {
      status |= bufio_writer_write(&writer, record, sizeof(record));
    }
    if ((status | bufio_writer_close(&writer)) != 0) {
      Die("bufio_writer_sync");
    }
  });
}

constexpr size_t kCommitThreads = 64;

void InThreads(const std::function<void()> &work) {
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kCommitThreads; i++) {
    threads.emplace_back(work);
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
}

double SyncPrivately(const std::string &path, size_t records_each) {
  return WallSecondsPerRecord(kCommitThreads * records_each, [&] {
    InThreads([&] {
      int descriptor = open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT, 0600);
      char record[58] = {};
      for (size_t i = 0; i < records_each; i++) {
        if (write(descriptor, record, sizeof(record)) != sizeof(record) ||
            fdatasync(descriptor) != 0) {
          Die("fdatasync");
        }
      }
      close(descriptor);
    });
  });
}

double SyncAsGroup(const std::string &path, size_t records_each) {
  return WallSecondsPerRecord(kCommitThreads * records_each, [&] {
    bufio_group_t *group = nullptr;
    if (bufio_group_open(path.c_str(), nullptr, &group) != 0) {
      Die("bufio_group_open");
    }
    InThreads([&] {
      char record[58] = {};
      for (size_t i = 0; i < records_each; i++) {
        if (bufio_group_commit(group, record, sizeof(record)) != 0) {
          Die("bufio_group_commit");
        }
      }
    });
    if (bufio_group_close(group) != 0) {
      Die("bufio_group_close");
    }
  });
}

// Wall time: what is waited for is the disk.
void Commit(const std::string &path) {
  size_t scale = flags.smoke ? 1 : 20;
  Compare("Records of 58 bytes that must be on the disk (wall time)",
          "ns/record", 1,
          {
              {"level power, sync_records 1",
               [&] {
                 return SyncEvery(path, 20 * scale, 1);
               }},
              {"level power, sync_records 1000",
               [&] {
                 return SyncEvery(path, 10000 * scale, 1000);
               }},
              {"64 threads, write and fdatasync each",
               [&] {
                 return SyncPrivately(path, 2 * scale);
               }},
              {"64 threads, bufio_group_commit",
               [&] {
                 return SyncAsGroup(path, 5 * scale);
               }},
          },
          {
              {"every 1000 / every record", 1, 0, 400},
              {"group commit / private syncs", 3, 2, 3},
          });
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

int main(int argc, char **argv) {
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
