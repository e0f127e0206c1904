// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What does a record cost that must be on the disk, alone and in company?

#include <fcntl.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "bufio/bufio_benchmark.h"
#include "bufio/group_commit.h"
#include "bufio/writer.h"

namespace bufio_benchmark {
namespace {

double WallSecondsPerRecord(size_t records, const std::function<void()> &work) {
  double start = Seconds(CLOCK_MONOTONIC);
  work();
  return (Seconds(CLOCK_MONOTONIC) - start) / static_cast<double>(records);
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

}  // namespace

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

}  // namespace bufio_benchmark
