// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What does a record of some dozen bytes cost, and what does it cost more if it
// has to survive SIGKILL?

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "bufio/bufio_benchmark.h"
#include "bufio/writer.h"

namespace bufio_benchmark {
namespace {

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

double WriteStream(const std::string &path, const std::vector<Record> &records,
                   size_t count) {
  return Timed([&] {
    // Neither truncated nor appended to.
    std::ofstream file(path, std::ios::binary | std::ios::in);
    for (size_t i = 0; i < count; i++) {
      const Record &record = records[i & (records.size() - 1)];
      file.write(record.bytes, static_cast<std::streamsize>(record.len));
    }
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

}  // namespace

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
              {"std::ofstream::write",
               [&] {
                 return WriteStream(path, records, count);
               }},
              {"bufio_writer_write",
               [&] {
                 return WriteOver(path, records, count);
               }},
          },
          {
              {"write / fwrite_unlocked, 64 KiB", 3, 1, 1.5},
              {"write / fwrite", 3, 0, 2.2},
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

}  // namespace bufio_benchmark
