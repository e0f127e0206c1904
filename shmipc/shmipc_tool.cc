// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// shmipc_tool: looks after regions from the command line.
//
//   shmipc_tool list               what there is, and who is attached
//   shmipc_tool gc                 removes what no live process is attached to
//   shmipc_tool gc --dry_run       says what it would remove
//   shmipc_tool verify /name       checks a region: exit code 1 when it is
//     [--backend=posix|sysv]       damaged, each problem on a line
//
// Exit code 2: wrong arguments.

#include <cerrno>
#include <cstdio>
#include <ctime>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "shmipc/region.h"
#include "shmipc/registry.h"

ABSL_FLAG(bool, dry_run, false, "gc: only say what would be removed");
ABSL_FLAG(std::string, backend, "posix", "verify: posix or sysv");

namespace {

constexpr char kUsage[] =
    "shmipc_tool list | gc [--dry_run] | verify [--backend=posix|sysv] /name";

const char *NameOf(shmipc_backend_t backend) {
  return backend == SHMIPC_SYSV ? "sysv" : "posix";
}

std::string TimeOf(uint64_t seconds) {
  if (seconds == 0) {
    return "-";
  }
  time_t time = static_cast<time_t>(seconds);
  struct tm parts;
  char text[32];
  localtime_r(&time, &parts);
  strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &parts);
  return text;
}

// Names are others' bytes: nothing in them may act on a terminal.
std::string Printable(const char *name) {
  std::string text;
  for (; *name != '\0'; name++) {
    unsigned char byte = static_cast<unsigned char>(*name);
    bool is_plain = byte > ' ' && byte < 0x7f && byte != '\\';
    text += is_plain ? std::string(1, *name) : absl::StrFormat("\\x%02x", byte);
  }
  return text;
}

bool IsLeftOver(const shmipc_entry_t &entry) {
  return entry.num_live == 0 && !entry.has_readers;
}

void PrintHeading() {
  absl::PrintF("%-6s %12s %5s %5s %-7s %6s %5s %8s %-19s %s\n", "kind", "bytes",
               "alive", "dead", "readers", "uid", "mode", "creator", "created",
               "name");
}

void Print(void *, const shmipc_entry_t *entry) {
  absl::PrintF("%-6s %12d %5d %5d %-7s %6d %5s %8d %-19s %s%s\n",
               NameOf(entry->backend), entry->size_bytes, entry->num_live,
               entry->num_dead, entry->has_readers ? "yes" : "no",
               entry->owner_uid, absl::StrFormat("%04o", entry->mode),
               entry->creator_pid, TimeOf(entry->created_s),
               Printable(entry->name),
               entry->is_unfinished ? " (unfinished)" : "");
}

void PrintLeftOver(void *, const shmipc_entry_t *entry) {
  if (IsLeftOver(*entry)) {
    Print(nullptr, entry);
  }
}

void PrintProblem(void *, const char *what, uint64_t offset, uint64_t value) {
  absl::PrintF("%s (byte %d: %#x)\n", what, offset, value);
}

int Report(int status) {
  if (status >= 0) {
    return 0;
  }
  absl::FPrintF(stderr, "shmipc_tool: %s\n", shmipc_strerror(status));
  return 1;
}

int Verify(const std::string &name, shmipc_backend_t backend) {
  shmipc_region_options_t options = {};
  options.backend = backend;
  options.read_only = true;
  options.allow_other_owner = true;
  shmipc_region_t *region = nullptr;
  int status = shmipc_region_open(name.c_str(), &options, &region);
  if (status < 0) {
    return Report(status);
  }
  int num_problems = shmipc_region_verify(region, PrintProblem, nullptr);
  shmipc_region_close(region);
  if (num_problems < 0) {
    return Report(num_problems);
  }
  if (num_problems == 0) {
    absl::PrintF("no problems\n");
  }
  return num_problems == 0 ? 0 : 1;
}

int Collect() {
  PrintHeading();
  if (absl::GetFlag(FLAGS_dry_run)) {
    return Report(shmipc_registry_list(PrintLeftOver, nullptr));
  }
  return Report(shmipc_registry_collect(Print, nullptr));
}

int Main(const std::vector<char *> &arguments) {
  std::string command = arguments.size() > 1 ? arguments[1] : "";
  std::string backend = absl::GetFlag(FLAGS_backend);
  if (command == "list" && arguments.size() == 2) {
    PrintHeading();
    return Report(shmipc_registry_list(Print, nullptr));
  }
  if (command == "gc" && arguments.size() == 2) {
    return Collect();
  }
  if (command == "verify" && arguments.size() == 3 &&
      (backend == "posix" || backend == "sysv")) {
    return Verify(arguments[2], backend == "sysv" ? SHMIPC_SYSV : SHMIPC_POSIX);
  }
  absl::FPrintF(stderr, "usage: %s\n", kUsage);
  return 2;
}

}  // namespace

int main(int argc, char **argv) {
  absl::SetProgramUsageMessage(kUsage);
  return Main(absl::ParseCommandLine(argc, argv));
}
