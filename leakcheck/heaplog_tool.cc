// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// heaplog_tool: looks into heaplogs from the command line.
//
//   heaplog_tool info run.heaplog    what was recorded, and how much of it
//   heaplog_tool check run.heaplog   the same, and whether it makes sense:
//                                    exit code 1 when the log is damaged or a
//                                    block is freed twice or handed out twice
//   heaplog_tool dump run.heaplog    every event, a line each, as text
//
// Output is for people and for grep; heaplog_reader.h is for programs.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "leakcheck/heaplog_reader.h"

ABSL_FLAG(bool, stacks, false, "dump: print the frames of each event's stack");

namespace {

constexpr absl::string_view kKindNames[] = {
    "?", "alloc", "free", "resize", "map", "unmap", "sample", "lost", "end"};

struct Totals {
  uint64_t kinds[HEAPLOG_END + 1] = {};
  uint64_t events = 0;
  uint64_t last_time_ns = 0;
  uint64_t live_bytes = 0;
  uint64_t peak_bytes = 0;
  uint64_t unknown_frees = 0;
  uint64_t double_allocs = 0;
  absl::flat_hash_map<uint64_t, uint64_t> blocks;  // Address to requested size.
};

void Count(const heaplog_event_t &event, Totals *totals) {
  totals->events++;
  totals->kinds[event.kind]++;
  totals->last_time_ns = event.time_ns;
  if (event.kind == HEAPLOG_ALLOC) {
    auto [block, is_new] =
        totals->blocks.try_emplace(event.address, event.size_bytes);
    if (!is_new) {
      totals->double_allocs++;
      totals->live_bytes -= block->second;
      block->second = event.size_bytes;
    }
    totals->live_bytes += event.size_bytes;
  } else if (event.kind == HEAPLOG_FREE || event.kind == HEAPLOG_RESIZE) {
    auto block = totals->blocks.find(event.address);
    if (block == totals->blocks.end()) {
      totals->unknown_frees++;
    } else if (event.kind == HEAPLOG_FREE) {
      totals->live_bytes -= block->second;
      totals->blocks.erase(block);
    } else {
      totals->live_bytes += event.size_bytes - block->second;
      block->second = event.size_bytes;
    }
  }
  totals->peak_bytes = std::max(totals->peak_bytes, totals->live_bytes);
}

void Dump(const heaplog_reader_t *reader, const heaplog_event_t &event) {
  absl::PrintF("%d.%09d thread %d %s", event.time_ns / 1000000000,
               event.time_ns % 1000000000, event.thread_index,
               kKindNames[event.kind]);
  switch (event.kind) {
    case HEAPLOG_ALLOC:
    case HEAPLOG_RESIZE:
      absl::PrintF(" %#x size %d usable %d", event.address, event.size_bytes,
                   event.usable_bytes);
      break;
    case HEAPLOG_FREE:
      absl::PrintF(" %#x", event.address);
      break;
    case HEAPLOG_MAP:
    case HEAPLOG_UNMAP:
      absl::PrintF(" %#x size %d", event.address, event.size_bytes);
      break;
    case HEAPLOG_SAMPLE:
      absl::PrintF(" resident %d", event.size_bytes);
      break;
    case HEAPLOG_LOST:
      absl::PrintF(" %d events", event.size_bytes);
      break;
    default:
      break;
  }
  if (event.stack_id != 0) {
    absl::PrintF(" stack %d", event.stack_id);
    if (absl::GetFlag(FLAGS_stacks)) {
      std::vector<uint64_t> frames(256);
      frames.resize(heaplog_reader_stack(reader, event.stack_id, frames.data(),
                                         frames.size()));
      for (uint64_t frame : frames) {
        absl::PrintF(" %#x", frame);
      }
    }
  }
  absl::PrintF("\n");
}

// Arguments with spaces between them, and what would confuse a terminal as '?'.
std::string Printable(absl::string_view text) {
  std::string printable;
  for (char c : text) {
    printable += c == '\0' ? ' ' : (c >= ' ' && c != '\x7f') ? c : '?';
  }
  return printable;
}

void PrintInfo(const heaplog_reader_t *reader, const Totals &totals) {
  const heaplog_info_t *info = heaplog_reader_info(reader);
  absl::PrintF("version      %d.%d\n", info->version_major,
               info->version_minor);
  absl::PrintF("process      %d %s\n", info->pid, Printable(info->executable));
  absl::PrintF("command line %s\n",
               Printable({info->command_line, info->command_line_bytes}));
  absl::PrintF("file         %d bytes, %.2f an event\n", info->file_bytes,
               totals.events == 0 ? 0.0
                                  : static_cast<double>(info->file_bytes) /
                                        static_cast<double>(totals.events));
  absl::PrintF("duration     %.3f s, %s\n",
               static_cast<double>(totals.last_time_ns) * 1e-9,
               info->clean_end ? "orderly end" : "no end recorded");
  absl::PrintF("events       %d\n", totals.events);
  for (uint32_t kind = HEAPLOG_ALLOC; kind <= HEAPLOG_LOST; kind++) {
    absl::PrintF("  %-10s %d\n", kKindNames[kind], totals.kinds[kind]);
  }
  absl::PrintF("lost events  %d\n", info->lost_count);
  absl::PrintF("live bytes   %d in %d blocks at the end, %d at the peak\n",
               totals.live_bytes, totals.blocks.size(), totals.peak_bytes);
  absl::PrintF("threads      %d\n", heaplog_reader_thread_count(reader));
  absl::PrintF("modules      %d\n", heaplog_reader_module_count(reader));
  absl::PrintF("stack ids    below %d\n", heaplog_reader_stack_id_end(reader));
}

int Run(const std::string &command, const char *path) {
  heaplog_reader_t *reader = nullptr;
  heaplog_error_t error;
  if (heaplog_reader_open(path, &reader, &error) != 0) {
    absl::FPrintF(stderr, "%s: byte %d: %s\n", path, error.byte_offset,
                  error.text);
    return 1;
  }
  Totals totals;
  std::vector<heaplog_event_t> events(512);
  size_t count;
  do {
    count = heaplog_reader_read(reader, events.data(), events.size());
    for (size_t i = 0; i < count; i++) {
      if (command == "dump") {
        Dump(reader, events[i]);
      } else {
        Count(events[i], &totals);
      }
    }
  } while (count == events.size());
  if (command != "dump") {
    PrintInfo(reader, totals);
  }
  int result = 0;
  if (heaplog_reader_status(reader, &error) != 0) {
    absl::FPrintF(stderr, "%s: byte %d: %s\n", path, error.byte_offset,
                  error.text);
    result = 1;
  }
  if (command == "check") {
    absl::PrintF("double alloc %d\nunknown free %d\n", totals.double_allocs,
                 totals.unknown_frees);
    if (heaplog_reader_info(reader)->lost_count == 0 &&
        (totals.double_allocs != 0 || totals.unknown_frees != 0)) {
      absl::FPrintF(stderr, "%s: the events contradict each other\n", path);
      result = 1;
    }
  }
  heaplog_reader_close(reader);
  return result;
}

}  // namespace

int main(int argc, char **argv) {
  absl::SetProgramUsageMessage(absl::StrCat("looks into a heaplog.\n\n  ",
                                            argv[0], " info|check|dump FILE"));
  std::vector<char *> arguments = absl::ParseCommandLine(argc, argv);
  const std::string command = arguments.size() == 3 ? arguments[1] : "";
  if (command != "info" && command != "check" && command != "dump") {
    absl::FPrintF(stderr, "%s\n", absl::ProgramUsageMessage());
    return 2;
  }
  return Run(command, arguments[2]);
}
