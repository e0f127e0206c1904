// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/heaplog_source.h"

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace viz {
namespace {

std::string ErrorText(const heaplog_error_t &error) {
  return absl::StrCat("byte ", error.byte_offset, ": ", error.text);
}

// What a user can do about a log that does not open.
const char *Advice(const heaplog_error_t &error) {
  switch (error.code) {
    case HEAPLOG_ERROR_SYSTEM:
      if (error.status == -EACCES) {
        return "only the user who recorded it may read it";
      }
      return "give the path of a log as LEAKCHECK_LOG named it, by default "
             "leakcheck.PID.heaplog";
    case HEAPLOG_ERROR_NOT_A_LOG:
      return "give a log, as a program run with libleakcheck.so writes it";
    case HEAPLOG_ERROR_VERSION:
      return "use the viz of the release that recorded it";
    default:
      return "nothing of it can be read, record the program again";
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<HeaplogSource>> HeaplogSource::Open(
    const std::string &path) {
  heaplog_reader_t *reader = nullptr;
  heaplog_error_t error;
  if (heaplog_reader_open(path.c_str(), &reader, &error) != 0) {
    if (error.code == HEAPLOG_ERROR_SYSTEM) {
      return absl::UnavailableError(
          absl::StrCat(path, ": ", error.text, "; ", Advice(error)));
    }
    return absl::DataLossError(
        absl::StrCat(path, ": ", ErrorText(error), "; ", Advice(error)));
  }
  return std::unique_ptr<HeaplogSource>(new HeaplogSource(reader));
}

HeaplogSource::HeaplogSource(heaplog_reader_t *reader) : reader_(reader) {
}

HeaplogSource::~HeaplogSource() {
  heaplog_reader_close(reader_);
}

size_t HeaplogSource::Read(heaplog_event_t *out_events, size_t capacity) {
  return heaplog_reader_read(reader_, out_events, capacity);
}

bool HeaplogSource::Rewind() {
  return heaplog_reader_rewind(reader_) == 0;
}

std::string HeaplogSource::Error() const {
  heaplog_error_t error;
  return heaplog_reader_status(reader_, &error) == 0 ? "" : ErrorText(error);
}

ProcessInfo HeaplogSource::Process() const {
  const heaplog_info_t *info = heaplog_reader_info(reader_);
  ProcessInfo process;
  process.pid = info->pid;
  process.start_unix_ns = info->start_unix_ns;
  process.file_bytes = info->file_bytes;
  process.lost_count = info->lost_count;
  process.executable = info->executable;
  process.clean_end = info->clean_end;
  const char *argument = info->command_line;
  const char *end = argument + info->command_line_bytes;
  while (argument < end) {
    const size_t length =
        strnlen(argument, static_cast<size_t>(end - argument));
    process.arguments.emplace_back(argument, length);
    argument += length + 1;
  }
  return process;
}

std::vector<Module> HeaplogSource::Modules() const {
  std::vector<Module> modules;
  heaplog_module_t logged;
  for (size_t i = 0; heaplog_reader_module(reader_, i, &logged); ++i) {
    Module module;
    module.path = logged.path;
    module.build_id.assign(reinterpret_cast<const char *>(logged.build_id),
                           logged.build_id_bytes);
    module.start_address = logged.start_address;
    module.end_address = logged.end_address;
    module.load_bias = logged.load_bias;
    module.load_time_ns = logged.load_time_ns;
    module.unload_time_ns = logged.unload_time_ns;
    modules.push_back(module);
  }
  return modules;
}

std::vector<heaplog_thread_t> HeaplogSource::Threads() const {
  std::vector<heaplog_thread_t> threads;
  heaplog_thread_t thread;
  for (size_t i = 0; heaplog_reader_thread(reader_, i, &thread); ++i) {
    threads.push_back(thread);
  }
  return threads;
}

bool HeaplogSource::StackNode(uint32_t stack_id,
                              uint64_t *out_instruction_pointer,
                              uint32_t *out_parent_id) const {
  return heaplog_reader_stack_node(reader_, stack_id, out_instruction_pointer,
                                   out_parent_id);
}

}  // namespace viz
