// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/replay_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "leakcheck/replay_allocator.h"

namespace leakcheck {

namespace {

double Ratio(uint64_t value, uint64_t of) {
  return of == 0 ? 0 : static_cast<double>(value) / static_cast<double>(of);
}

double Milliseconds(uint64_t ns) {
  return static_cast<double>(ns) * 1e-6;
}

void AppendHeader(const std::string &path, const ReplayProgram &program,
                  const ReplaySettings &settings, std::string *text) {
  absl::StrAppendFormat(
      text,
      "log        %s\n"
      "operations %d: %d allocs, %d frees, %d resizes; %d threads, %s\n"
      "live peak  %d bytes in %d blocks, after operation %d\n"
      "malloc     %s\n",
      path, program.operations.size(), program.alloc_count, program.free_count,
      program.resize_count, program.thread_count,
      settings.is_concurrent ? "at once" : "in order", program.peak_bytes,
      program.peak_count, program.peak_index + 1, ReplayMallocOrigin());
  if (program.lost_count != 0) {
    absl::StrAppendFormat(
        text, "lost       %d events, without which %d were left out\n",
        program.lost_count, program.skipped_count);
  }
}

void AppendSeries(const ReplayResult &result, std::string *text) {
  absl::StrAppendFormat(text, "\n%-10s %9s %12s %12s %12s %8s %8s %8s %12s\n",
                        result.allocator, "time s", "requested", "usable",
                        "resident", "internal", "external", "pieces",
                        "largest");
  for (const ReplaySample &sample : result.samples) {
    absl::StrAppendFormat(
        text, "%10d %9.3f %12d %12d %12d %8.3f %8.3f", sample.operation,
        static_cast<double>(sample.time_ns) * 1e-9, sample.requested_bytes,
        sample.usable_bytes, sample.resident_bytes, ReplayInternal(sample),
        ReplayExternal(sample));
    if (sample.has_pieces) {
      absl::StrAppendFormat(text, " %8d %12d", sample.pieces.free_count,
                            sample.pieces.largest_free_bytes);
    }
    absl::StrAppend(text, "\n");
  }
}

// As a string of JSON. Paths may have any bytes; those beyond printable ASCII
// become '?', so that it is UTF-8 whatever they were.
std::string Quoted(absl::string_view value) {
  std::string text = "\"";
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      absl::StrAppend(&text, "\\", absl::string_view(&c, 1));
    } else if (byte < 0x20) {
      absl::StrAppendFormat(&text, "\\u%04x", byte);
    } else {
      text += byte < 0x7f ? c : '?';
    }
  }
  return text + "\"";
}

void AppendSamples(const ReplayResult &result, std::string *text) {
  absl::StrAppend(text, "\"samples\":[");
  const char *separator = "";
  for (const ReplaySample &sample : result.samples) {
    absl::StrAppendFormat(
        text,
        "%s{\"operation\":%d,\"time_ns\":%d,\"requested_bytes\":%d,"
        "\"usable_bytes\":%d,\"resident_bytes\":%d,\"internal\":%.6f,"
        "\"external\":%.6f",
        separator, sample.operation, sample.time_ns, sample.requested_bytes,
        sample.usable_bytes, sample.resident_bytes, ReplayInternal(sample),
        ReplayExternal(sample));
    if (sample.has_pieces) {
      absl::StrAppendFormat(
          text,
          ",\"free_bytes\":%d,\"free_pieces\":%d,\"largest_free_bytes\":%d",
          sample.pieces.free_bytes, sample.pieces.free_count,
          sample.pieces.largest_free_bytes);
    }
    absl::StrAppend(text, "}");
    separator = ",";
  }
  absl::StrAppend(text, "]");
}

}  // namespace

double ReplayInternal(const ReplaySample &sample) {
  return std::max(0.0, 1 - Ratio(sample.requested_bytes, sample.usable_bytes));
}

double ReplayExternal(const ReplaySample &sample) {
  return std::max(0.0, 1 - Ratio(sample.usable_bytes, sample.resident_bytes));
}

std::string ReplayText(const std::string &path, const ReplayProgram &program,
                       const ReplaySettings &settings,
                       const std::vector<ReplayResult> &results) {
  std::string text;
  AppendHeader(path, program, settings, &text);
  absl::StrAppendFormat(&text,
                        "\n%-10s %9s %9s %9s %8s %10s %8s %12s %9s %8s\n",
                        "allocator", "cpu ms", "first", "wall ms", "ns/call",
                        "longest ns", "steps", "footprint", "/live", "refused");
  for (const ReplayResult &result : results) {
    absl::StrAppendFormat(
        &text, "%-10s %9.2f %9.2f %9.2f %8.1f %10d %8s %12d %9.3f %8d\n",
        result.allocator, Milliseconds(result.cpu_ns),
        Milliseconds(result.first_cpu_ns), Milliseconds(result.wall_ns),
        Ratio(result.cpu_ns, program.operations.size()), result.longest_call_ns,
        result.longest_steps == 0 ? "-" : absl::StrCat(result.longest_steps),
        result.footprint_bytes,
        Ratio(result.footprint_bytes, program.peak_bytes),
        result.refused_count);
  }
  for (const ReplayResult &result : results) {
    AppendSeries(result, &text);
  }
  return text;
}

std::string ReplayJson(const std::string &path, const ReplayProgram &program,
                       const ReplaySettings &settings,
                       const std::vector<ReplayResult> &results) {
  std::string text = absl::StrFormat(
      "{\"log\":%s,\"operations\":%d,\"allocs\":%d,\"frees\":%d,"
      "\"resizes\":%d,\"threads\":%d,\"concurrent\":%s,\"rounds\":%d,"
      "\"peak_bytes\":%d,\"peak_blocks\":%d,\"peak_operation\":%d,"
      "\"lost_events\":%d,\"skipped_events\":%d,\"malloc\":%s,\"results\":[",
      Quoted(path), program.operations.size(), program.alloc_count,
      program.free_count, program.resize_count, program.thread_count,
      settings.is_concurrent ? "true" : "false", settings.rounds,
      program.peak_bytes, program.peak_count, program.peak_index + 1,
      program.lost_count, program.skipped_count, Quoted(ReplayMallocOrigin()));
  const char *separator = "";
  for (const ReplayResult &result : results) {
    absl::StrAppendFormat(
        &text,
        "%s{\"allocator\":%s,\"cpu_ns\":%d,\"first_cpu_ns\":%d,"
        "\"wall_ns\":%d,\"longest_call_ns\":%d,\"longest_steps\":%d,"
        "\"footprint_bytes\":%d,\"refused\":%d,",
        separator, Quoted(result.allocator), result.cpu_ns, result.first_cpu_ns,
        result.wall_ns, result.longest_call_ns, result.longest_steps,
        result.footprint_bytes, result.refused_count);
    AppendSamples(result, &text);
    absl::StrAppend(&text, "}");
    separator = ",";
  }
  return text + "]}\n";
}

}  // namespace leakcheck
