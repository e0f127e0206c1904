// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/heaplog_test_util.h"

#include <unistd.h>

#include <fstream>
#include <iterator>
#include <list>
#include <sstream>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_reader.h"

namespace heaplog_test {
namespace {

void ReadDefinitions(const heaplog_reader_t *reader, Log *log) {
  log->info = *heaplog_reader_info(reader);
  log->executable = log->info.executable;
  log->command_line.assign(log->info.command_line,
                           log->info.command_line_bytes);
  for (uint32_t id = 0; id < heaplog_reader_stack_id_end(reader); id++) {
    uint64_t ip = 0;
    uint32_t parent = 0;
    if (heaplog_reader_stack_node(reader, id, &ip, &parent)) {
      log->stacks[id] = {parent, ip};
    }
  }
  heaplog_module_t module;
  for (size_t i = 0; heaplog_reader_module(reader, i, &module); i++) {
    Module copy = {module, module.path};
    copy.module.path = nullptr;
    log->modules.push_back(copy);
  }
  heaplog_thread_t thread;
  for (size_t i = 0; heaplog_reader_thread(reader, i, &thread); i++) {
    log->threads.push_back(thread);
  }
  EXPECT_EQ(log->modules.size(), heaplog_reader_module_count(reader));
  EXPECT_EQ(log->threads.size(), heaplog_reader_thread_count(reader));
}

}  // namespace

std::string TempPath(const std::string &name) {
  std::string path =
      ::testing::TempDir() + "/" + std::to_string(getpid()) + "." + name;
  unlink(path.c_str());
  return path;
}

std::string ReadFile(const std::string &path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream) << path;
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

void WriteFile(const std::string &path, const std::string &bytes) {
  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  stream << bytes;
  EXPECT_TRUE(stream.flush()) << path;
}

heaplog_writer_options_t Options(const std::string &path) {
  heaplog_writer_options_t options = {};
  // Kept for ever: options hold a pointer.
  static std::list<std::string> *paths = new std::list<std::string>;
  options.path = paths->emplace_back(path).c_str();
  options.start_monotonic_ns = kStartNs;
  options.start_unix_ns = 1600000000000000000u;
  options.pid = 4711;
  options.page_bytes = 4096;
  return options;
}

Log ReadLog(const std::string &path, size_t batch) {
  Log log;
  heaplog_reader_t *reader = nullptr;
  log.open_status = heaplog_reader_open(path.c_str(), &reader, &log.error);
  EXPECT_EQ(log.open_status, log.error.status);
  EXPECT_EQ(log.open_status == 0, log.error.code == HEAPLOG_OK);
  if (log.open_status != 0) {
    EXPECT_STRNE(log.error.text, "");
    return log;
  }
  std::vector<heaplog_event_t> events(batch);
  size_t count = 0;
  do {
    EXPECT_EQ(heaplog_reader_status(reader, nullptr), 0);
    count = heaplog_reader_read(reader, events.data(), batch);
    log.events.insert(log.events.end(), events.begin(), events.begin() + count);
  } while (count == batch);
  EXPECT_EQ(heaplog_reader_read(reader, events.data(), batch), 0u);
  log.status = heaplog_reader_status(reader, &log.error);
  EXPECT_EQ(log.status, log.error.status);
  EXPECT_EQ(log.status == 0, log.error.code == HEAPLOG_OK);
  EXPECT_EQ(log.status == 0, log.error.text[0] == '\0');
  ReadDefinitions(reader, &log);
  uint64_t time_ns = 0;
  for (const heaplog_event_t &event : log.events) {
    EXPECT_LE(time_ns, event.time_ns);
    EXPECT_LT(event.thread_index, log.threads.size());
    time_ns = event.time_ns;
  }
  heaplog_reader_close(reader);
  return log;
}

Log ReadBytes(const std::string &bytes, size_t batch) {
  std::string path = TempPath("bytes.heaplog");
  WriteFile(path, bytes);
  Log log = ReadLog(path, batch);
  unlink(path.c_str());
  return log;
}

bool Same(const heaplog_event_t &a, const heaplog_event_t &b) {
  return a.time_ns == b.time_ns && a.address == b.address &&
         a.size_bytes == b.size_bytes && a.usable_bytes == b.usable_bytes &&
         a.stack_id == b.stack_id && a.thread_index == b.thread_index &&
         a.kind == b.kind && a.reserved == b.reserved;
}

std::string ToString(const heaplog_event_t &event) {
  std::ostringstream text;
  text << "kind " << event.kind << " time " << event.time_ns << " thread "
       << event.thread_index << " address " << event.address << " size "
       << event.size_bytes << " usable " << event.usable_bytes << " stack "
       << event.stack_id;
  return text.str();
}

Log ReadOneChunk(const Bytes &payload) {
  LogBuilder builder;
  builder.Chunk(0, 0, 0, Bytes().Thread(0).Append(payload.str()));
  return ReadBytes(builder.Build());
}

}  // namespace heaplog_test
