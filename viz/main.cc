// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// viz: pictures of what a program did with its heap.

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "viz/atomic_file.h"
#include "viz/heaplog_source.h"
#include "viz/report.h"

ABSL_FLAG(std::string, o, "",
          "The HTML file to write. Without it, the log's name with .html for "
          ".heaplog, in the current folder.");
ABSL_FLAG(bool, quiet, false, "Print nothing but errors.");

namespace viz {
namespace {

constexpr char kUsage[] =
    "makes one HTML file of a log of heap events.\n\n"
    "  viz report run.heaplog [-o run.html] [--quiet]\n\n"
    "Exit code: 0 when the log was whole, 2 when it was damaged and the report "
    "is of\nthe part before the damage, 1 when there is no report.";

enum ExitCode {
  kWhole = 0,
  kNoReport = 1,
  kPartOfLog = 2
};

int Fail(const std::string &message) {
  fprintf(stderr, "viz: %s\n", message.c_str());
  return kNoReport;
}

int FailToWrite(const absl::Status &status) {
  return Fail(
      absl::StrCat(status.message(), "; give another place for it with -o"));
}

// For operator new: there is no way on.
void FailForWantOfMemory() {
  static constexpr char kMessage[] =
      "viz: not enough memory for the tables of this log; allow more, or "
      "record "
      "a shorter run\n";
  if (write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1) < 0) {
    // Nobody is left to be told.
  }
  _exit(kNoReport);
}

std::string DefaultOutput(const std::string &log_path) {
  const std::string ending = ".heaplog";
  std::string name = log_path.substr(log_path.find_last_of('/') + 1);
  if (name.size() > ending.size() &&
      name.compare(name.size() - ending.size(), ending.size(), ending) == 0) {
    name.resize(name.size() - ending.size());
  }
  return name + ".html";
}

bool IsSameFile(const std::string &a, const std::string &b) {
  struct stat first;
  struct stat second;
  return stat(a.c_str(), &first) == 0 && stat(b.c_str(), &second) == 0 &&
         first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

// Names come from files: a terminal must not take them for commands.
std::string Printable(std::string text) {
  for (char &c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      c = '?';
    }
  }
  return text;
}

void PrintFigures(const ReportResult &report) {
  const Totals &totals = report.totals;
  printf("peak live bytes: %llu\n",
         static_cast<unsigned long long>(totals.peak_live_bytes));
  printf("allocations: %llu\n",
         static_cast<unsigned long long>(totals.allocations));
  if (!report.top_site.empty()) {
    printf("top site at the peak: %s, %llu bytes\n",
           Printable(report.top_site).c_str(),
           static_cast<unsigned long long>(report.top_site_bytes));
  }
}

int Report(const std::string &log_path) {
  std::string output = absl::GetFlag(FLAGS_o);
  if (output.empty()) {
    output = DefaultOutput(log_path);
  }
  auto source = HeaplogSource::Open(log_path);
  if (!source.ok()) {
    return Fail(std::string(source.status().message()));
  }
  if (IsSameFile(log_path, output)) {
    return Fail(output +
                ": the report would replace the log; give another place for it "
                "with -o");
  }
  const absl::Status writable = CheckIsWritable(output);
  if (!writable.ok()) {
    return FailToWrite(writable);
  }
  const ReportResult report =
      MakeReport(source->get(), log_path, ReportLimits());
  if (!report.error.empty() && report.totals.events == 0) {
    return Fail(absl::StrCat(log_path, ": ", report.error,
                             "; no event before that can be read, record the "
                             "program again"));
  }
  const absl::Status written = WriteFileAtomically(output, report.page);
  if (!written.ok()) {
    return FailToWrite(written);
  }
  if (!report.error.empty()) {
    fprintf(stderr,
            "viz: %s: %s; the report covers the %llu events before that\n",
            log_path.c_str(), report.error.c_str(),
            static_cast<unsigned long long>(report.totals.events));
  }
  if (!absl::GetFlag(FLAGS_quiet)) {
    PrintFigures(report);
    printf("report: %s\n", output.c_str());
    if (fflush(stdout) != 0 || ferror(stdout) != 0) {
      return Fail(absl::StrCat(
          "the report is in ", output,
          ", but its figures cannot be written: ", strerror(errno)));
    }
  }
  return report.error.empty() ? kWhole : kPartOfLog;
}

int Main(int argc, char **argv) {
  std::set_new_handler(FailForWantOfMemory);
  // A file that must not grow is an error like a full disk, not a death.
  signal(SIGXFSZ, SIG_IGN);
  absl::SetProgramUsageMessage(kUsage);
  const std::vector<char *> arguments = absl::ParseCommandLine(argc, argv);
  if (arguments.size() < 2) {
    return Fail(absl::StrCat("no command; usage:\n", kUsage));
  }
  const std::string command = arguments[1];
  if (command != "report") {
    return Fail("unknown command '" + command + "'; there is: report");
  }
  if (arguments.size() != 3) {
    return Fail(absl::StrCat("report takes one log, not ", arguments.size() - 2,
                             "; see viz --help"));
  }
  return Report(arguments[2]);
}

}  // namespace
}  // namespace viz

int main(int argc, char **argv) {
  return viz::Main(argc, argv);
}
